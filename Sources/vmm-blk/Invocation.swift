/// The program's arguments, rewritten before they are parsed.
internal import ArgumentParser

enum Invocation {
  /// The name by which management software knows a back-end of this kind.
  private static let backendName = "vhost-user-blk"

  /// The arguments as `VmmBlk` expects them.
  ///
  /// Management software calls a vhost-user back-end without a subcommand ("Backend program conventions" of the specification):
  /// `PROGRAM --socket-path=… --blk-file=…`. So `serve` is implied if the first word is one of its options, or if the program
  /// is called by the name of a back-end. With --print-capabilities all other options are ignored, even unknown ones.
  ///
  /// - Parameters:
  ///   - program: the name or path by which it was called.
  ///   - arguments: the arguments after that.
  static func words(program: String, _ arguments: [String]) -> [String] {
    let arguments = DriverCheckOptions.words(arguments)
    let name = program.split(separator: "/").last ?? ""
    let isBackend = name == backendName || arguments.first.map(startsServe) ?? false
    guard isBackend || arguments.first == "serve" else { return arguments }
    if arguments.contains("--print-capabilities") { return ["serve", "--print-capabilities"] }
    let isWhole = !isBackend || arguments.first == "serve" || arguments.first.map(VmmBlk.isOwn) ?? false
    return isWhole ? arguments : ["serve"] + arguments
  }

  private static func startsServe(_ word: String) -> Bool { word.hasPrefix("--") && !VmmBlk.isOwn(word) }
}

extension VmmBlk {
  /// An option of the program itself, not of one of its commands.
  static func isOwn(_ word: String) -> Bool {
    ["--help", "-h", "--help-hidden", "--version", "--experimental-dump-help", "--generate-completion-script"].contains {
      word == $0 || word.hasPrefix($0 + "=")
    }
  }
}
