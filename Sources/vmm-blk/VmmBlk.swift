internal import ArgumentParser

@main
struct VmmBlk: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "vmm-blk", abstract: "A virtio block device in userspace.",
    subcommands: [ServeCommand.self, RunCommand.self, Guest.self, InspectCommand.self, BenchCommand.self])

  static func main() {
    Startup.begin()
    var arguments = Startup.arguments
    // The conventions of vhost-user back-ends: with this option all others are ignored, those that nobody knows included.
    if arguments.first == "serve", arguments.contains("--print-capabilities") { arguments = ["serve", "--print-capabilities"] }
    var command: any ParsableCommand
    do { command = try parseAsRoot(arguments) } catch { Startup.end(self, error, isOurs: false) }
    do { try command.run() } catch { Startup.end(self, error, isOurs: true) }
  }

  func run() throws { throw ValidationError("Say what to do: serve, run, guest, inspect or bench.") }
}
