/// The message and the status when a command ends with an error, or with help that was requested.
internal import ArgumentParser
internal import OperatorWords
internal import VirtioCore

struct CommandEnd {
  /// Without a newline; empty if there is nothing to say.
  let text: String
  let status: Int32
  /// The text goes to standard error.
  var isMistake: Bool { status != 0 }

  /// - Parameters:
  ///   - error: what the parser or a command threw; requested help arrives as an error, too.
  ///   - words: the arguments as the parser saw them.
  ///   - isOurs: a command that ran threw it, so its sentence is printed as one line, whatever names it contains.
  init(_ error: any Error, words: [String], isOurs: Bool) {
    let code = VmmBlk.exitCode(for: error)
    let whole = VmmBlk.fullMessage(for: error)
    guard !code.isSuccess, !(error is ExitCode) else {
      (text, status) = (whole, code.rawValue)
      return
    }
    if isOurs {
      status = ExitStatus(error).rawValue
      text = "Error: " + printable(VmmBlk.message(for: error))
      return
    }
    status = ExitStatus.usage.rawValue
    // What follows the first sentence is the parser's: help for the option, and the usage line.
    let message = VmmBlk.message(for: error)
    var rest = whole.hasPrefix("Error: " + message) ? String(whole.dropFirst(7 + message.count)) : ""
    var sentence = message
    let described = CommandWords()
    if let mistake = described?.mistake(in: words) ?? described?.double(in: words) {
      sentence = mistake
      // The parser's help may be about another option.
      rest = rest.ranges(of: "\nUsage:").first.map { String(rest[$0.lowerBound...]) } ?? rest
    }
    if sentence == message {
      if let possible = CommandWords.possible(after: message) { sentence += ": " + possible }
      // The parser repeats words without escaping them.
      for word in words where printable(word) != word { sentence = sentence.replacing(word, with: printable(word)) }
    }
    text = "Error: " + sentence + rest
  }
}
