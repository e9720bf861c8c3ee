internal import ArgumentParser
internal import OperatorWords

@main
struct VmmBlk: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "vmm-blk", abstract: "A virtio block device in userspace.",
    discussion: """
      Sizes are in bytes, with an optional suffix: 4k, 1M, 1G (powers of 1024, also written 1GiB), 10GB (powers of 1000).

      Exit status:

      \(ExitStatus.help)
      """,
    version: Version.full,
    subcommands: [
      ServeCommand.self, RunCommand.self, CtlCommand.self, TopCommand.self, TraceCommand.self, ImageCommand.self, Guest.self,
      InspectCommand.self, BenchCommand.self, VerifyCrashCommand.self, ConformCommand.self,
    ])

  static func main() {
    Startup.begin()
    let program = Startup.words.first.map { String(decoding: $0, as: UTF8.self) } ?? ""
    let words = Invocation.words(program: program, Startup.arguments)
    var command: any ParsableCommand
    do { command = try parseAsRoot(words) } catch { Startup.end(CommandEnd(error, words: words, isOurs: false)) }
    do { try check(words) } catch { Startup.end(CommandEnd(error, words: words, isOurs: true)) }
    do { try command.run() } catch { Startup.end(CommandEnd(error, words: words, isOurs: true)) }
  }

  /// Rejects what the parser accepts but should not.
  private static func check(_ words: [String]) throws {
    if words.contains("--print-capabilities") { return }
    if let mistake = PathArgument.mistake(in: Startup.words) { throw ValidationError(mistake) }
    if words.first == "help", let mistake = CommandWords()?.mistake(in: Array(words.dropFirst())) {
      throw ValidationError(mistake)
    }
    if CommandWords.mayHaveDouble(words), let mistake = CommandWords()?.double(in: words) { throw ValidationError(mistake) }
    if CommandWords.mayHaveEmpty(words), let mistake = CommandWords()?.empty(in: words) { throw ValidationError(mistake) }
  }

  func run() throws {
    throw ValidationError(
      "Say what to do: serve, run, ctl, top, trace, image, guest, inspect, bench, verify-crash or conform.")
  }
}
