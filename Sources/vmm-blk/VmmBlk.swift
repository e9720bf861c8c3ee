internal import ArgumentParser

@main
struct VmmBlk: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "vmm-blk", abstract: "A virtio block device in userspace.",
    subcommands: [ServeCommand.self, Run.self, Inspect.self, BenchCommand.self])
}
