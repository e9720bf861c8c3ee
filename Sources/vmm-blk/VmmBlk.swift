internal import ArgumentParser

@main
struct VmmBlk: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "vmm-blk", abstract: "A virtio block device in userspace.",
    subcommands: [ServeCommand.self, RunCommand.self, Guest.self, InspectCommand.self, BenchCommand.self])
}
