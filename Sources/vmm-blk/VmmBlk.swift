internal import ArgumentParser

@main
struct VmmBlk: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "vmm-blk", abstract: "A virtio block device in userspace.",
    subcommands: [ServeCommand.self, RunCommand.self, Guest.self, InspectCommand.self, BenchCommand.self])

  static func main() {
    let arguments = Array(CommandLine.arguments.dropFirst())
    // The conventions of vhost-user back-ends: with this option all others are ignored, those that nobody knows included.
    let asksForCapabilities = arguments.first == "serve" && arguments.contains("--print-capabilities")
    main(asksForCapabilities ? ["serve", "--print-capabilities"] : arguments)
  }
}
