internal import ArgumentParser
internal import Glibc
internal import SystemPackage

@main
struct VmmBlk: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "vmm-blk", abstract: "A virtio block device in userspace.",
    discussion: """
      Sizes are bytes, with a suffix if you like: 4k, 1M, 1G (powers of 1024, also as 1GiB), 10GB (powers of 1000).

      Exit status:

      \(ExitStatus.help)
      """,
    version: Version.text,
    subcommands: [ServeCommand.self, RunCommand.self, Guest.self, InspectCommand.self, BenchCommand.self])

  static func main() {
    let arguments = CommandLine.arguments
    let words = Invocation.words(program: arguments.first ?? "", Array(arguments.dropFirst()))
    var command: any ParsableCommand
    do { command = try parseAsRoot(words) } catch { end(CommandEnd(error, words: words, isOurs: false)) }
    do { try command.run() } catch { end(CommandEnd(error, words: words, isOurs: true)) }
  }

  private static func end(_ end: CommandEnd) -> Never {
    let stream: FileDescriptor = end.isMistake ? .standardError : .standardOutput
    if !end.text.isEmpty { _ = try? stream.writeAll((end.text + "\n").utf8) }
    Glibc.exit(end.status)
  }
}
