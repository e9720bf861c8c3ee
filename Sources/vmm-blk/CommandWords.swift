/// A second look at a command line that the parser rejected: an unknown word is reported before any other mistake, and a
/// message about a wrong value lists the valid ones.
internal import ArgumentParser
internal import FoundationEssentials
internal import MetricsExport
internal import OperatorWords
internal import VirtioCore

/// The options of the program, as reported by the parser itself.
struct CommandWords {
  private let root: Command

  private struct Tool: Decodable { var command: Command }

  private struct Command: Decodable {
    var commandName: String
    var arguments: [Argument]?
    var subcommands: [Command]?
    var defaultSubcommand: String?
  }

  private struct Argument: Decodable {
    struct Name: Decodable {
      var kind: String
      var name: String
      var word: String { (kind == "long" ? "--" : "-") + name }
    }
    var kind: String
    var names: [Name]?
    var isRepeating: Bool?
  }

  /// - Returns: `nil` if the parser does not report them.
  init?() {
    guard let tool = try? JSONDecoder().decode(Tool.self, from: Data(VmmBlk._dumpHelp().utf8)) else { return nil }
    root = tool.command
  }

  // MARK: Unknown words

  /// The sentence about the first unknown word; `nil` if all are known.
  func mistake(in words: [String]) -> String? {
    var commands = [root]
    var index = 0
    while index < words.count {
      let word = words[index]
      index += 1
      if word == "--" { return nil }
      let names = names(commands)
      if word.hasPrefix("-"), word.count > 1 {
        let name = String(word.prefix { $0 != "=" })
        guard let option = names[name] else {
          if VmmBlk.isOwn(word) { continue }
          let close = CloseWord.find(to: name, among: names.keys.filter { $0.hasPrefix("--") } + ["--help", "--version"])
          return "Unknown option '\(printable(name))'" + (close.map { ". Did you mean '\($0)'?" } ?? "")
        }
        // Skip its value, whatever it looks like.
        if option.kind == "option", !word.contains("="), index < words.count, !words[index].hasPrefix("-") { index += 1 }
      } else if let next = commands[commands.count - 1].subcommands?.first(where: { $0.commandName == word }) {
        commands.append(next)
      } else if let choices = commands[commands.count - 1].subcommands, commands[commands.count - 1].defaultSubcommand == nil {
        let close = CloseWord.find(to: word, among: choices.map(\.commandName))
        return "There is no '\(printable(word))' in '\(commands.map(\.commandName).joined(separator: " "))'"
          + (close.map { ". Did you mean '\($0)'?" } ?? ": use " + Self.list(choices.map(\.commandName)))
      }
    }
    return nil
  }

  // MARK: Words that the parser accepts and should not

  /// One word, or an option with its value.
  private struct Given {
    /// The option's name as written, and its description; `nil` for a word that belongs to no option.
    var option: (name: String, argument: Argument)?
    var value: String
    /// The option is written as `--name=VALUE`. Without a value, the parser takes the next word as the value.
    var isJoined = false
  }

  /// - Parameter words: a command line that the parser has accepted.
  private func given(in words: [String]) -> [Given] {
    var commands = [root]
    var given: [Given] = []
    var index = 0
    while index < words.count {
      let word = words[index]
      index += 1
      guard word != "--" else { return given + words[index...].map { Given(value: $0) } }
      guard word.hasPrefix("-") else {
        if let next = commands[commands.count - 1].subcommands?.first(where: { $0.commandName == word }) {
          commands.append(next)
        } else {
          given.append(Given(value: word))
        }
        continue
      }
      let name = String(word.prefix { $0 != "=" })
      guard let option = names(commands)[name], option.kind == "option" else { continue }
      if word.contains("=") {
        given.append(Given(option: (name, option), value: String(word.dropFirst(name.count + 1)), isJoined: true))
      } else if index < words.count {
        given.append(Given(option: (name, option), value: words[index]))
        index += 1
      }
    }
    return given
  }

  /// The sentence about the first option that takes one value and was given two, under any of its names; `nil` if there is
  /// none. The parser silently uses the last one.
  func double(in words: [String]) -> String? {
    var first: [String: String] = [:]
    for case (let name, let option)? in given(in: words).map(\.option) where option.isRepeating != true {
      guard let other = first.updateValue(name, forKey: option.names?.first?.word ?? name) else { continue }
      return other == name
        ? "\(name) is given twice: give it once" : "\(other) and \(name) are two names of one option: give one of them"
    }
    return nil
  }

  /// The sentence about the first empty word, such as an unset variable of a script; `nil` if there is none. Otherwise it would
  /// be taken for the name of a file that does not exist. Two options may be empty: no serial number, no backing file.
  func empty(in words: [String]) -> String? {
    for given in given(in: words) where given.value.isEmpty {
      guard let (name, _) = given.option else { return "an argument is empty: give it a value, or leave it out" }
      let mayBeEmpty = name == "--serial" || ["-b", "--backing"].contains(name) && words.starts(with: ["image", "rebase"])
      if !mayBeEmpty { return "\(name) is empty: give it a value, or leave it out" }
      if given.isJoined { return "\(name)= has no value: write \(name) ''" }
    }
    return nil
  }

  /// Some word may be empty: worth a closer look, for which the parser has to describe all options.
  static func mayHaveEmpty(_ words: [String]) -> Bool {
    words.contains { $0.isEmpty || $0.hasPrefix("-") && $0.hasSuffix("=") }
  }

  /// Alternative names of options, with the first name of each.
  static let otherNames = [
    "--queues": "--num-queues", "--readwrite": "--rw", "--blocksize": "--bs", "--depth": "--iodepth", "--seed": "--randseed",
    "--ramp-time": "--ramp_time", "--latency-target": "--latency_target", "--latency-percentile": "--latency_percentile",
    "--output_format": "--output-format", "-b": "--backing", "-F": "--backing-format", "-c": "--create", "-a": "--apply",
    "-d": "--delete",
  ]

  /// Some option may be given twice: worth a closer look, for which the parser has to describe all options.
  static func mayHaveDouble(_ words: [String]) -> Bool {
    var names: Set<String> = []
    return words.contains { word in
      let name = String(word.prefix { $0 != "=" })
      return name.hasPrefix("-") && !names.insert(otherNames[name] ?? name).inserted
    }
  }

  // MARK: The parser's description

  /// All options that these commands accept, by name.
  private func names(_ commands: [Command]) -> [String: Argument] {
    var all = commands
    if let last = commands.last, let name = last.defaultSubcommand {
      all += (last.subcommands ?? []).filter { $0.commandName == name }
    }
    var names: [String: Argument] = [:]
    for argument in all.flatMap({ $0.arguments ?? [] }) {
      for name in argument.names ?? [] { names[name.word] = argument }
    }
    return names
  }

  private static func list(_ words: [String]) -> String {
    words.dropLast().joined(separator: ", ") + (words.count > 1 ? " or " : "") + (words.last ?? "")
  }

  // MARK: Wrong values

  /// What would be valid, if the parser only says that a value is invalid: "The value '1x' is invalid for '--bs <size>'".
  ///
  /// - Returns: `nil` for any other sentence, or one that already says what is valid.
  static func possible(after sentence: String) -> String? {
    guard sentence.hasPrefix("The value '"), sentence.hasSuffix("'"),
      let place = sentence.ranges(of: " is invalid for '").last
    else { return nil }
    let argument = sentence[place.upperBound...].dropLast()
    // For a hidden option there is only the name.
    guard argument.hasSuffix(">") || !argument.contains(" ") else { return nil }
    let option = String(argument.prefix { $0 != " " })
    let name = argument.split(separator: "<", maxSplits: 1).last.map { String($0.dropLast()) } ?? ""
    return "use " + (options[option] ?? values[name] ?? "a whole number")
  }

  private static let options = [
    "--pin-cpus": "CPU numbers as in 0,2,4-6",
    "--client-cpus": "CPU numbers as in 0,2,4-6, or none",
    "--depths": "numbers from 1 to 1024 as in 1,4,32",
    "--groups": "some of bare, engine, uring, waiting and notification with commas between",
    "--seconds": "a number of seconds as in 5 or 0.5",
    "--latency_percentile": "a number of percent as in 99 or 99.9",
    "--waiting": "sleep, poll:US, adaptive:US or busy, with US from 0 to 1000000",
    "--notify": "batch, each or coalesce:COUNT:US",
    "--uring": "words as in deferred,batch=8; --help lists them",
    "--rw": "read, write, randread, randwrite, rw or randrw",
    "--hex": "an even number of hexadecimal digits",
    "--inject": "WHICH:FAULT[:CONDITION...] as in write:eio:rate=0.01 or flush:eio:count=1; serve --help lists them all",
    "--metrics": MetricsAddress.forms,
    "--limit": LimitChange.forms,
    "--config": ConfigurationWords.forms,
    "--queue": "as in size=8,desc=0x0,avail=0x400,used=0x800",
  ]

  private static let values = [
    "word=rate[/burst],...": LimitChange.forms, "size": ByteSize.forms, "bytes": ByteSize.forms, "offset": ByteSize.forms,
    "length": ByteSize.forms,
    "address": ByteSize.forms, "bits": "a number as in 0x100000000", "byte": "a number from 0 to 255, as in 0xaa",
    "time": "a time as in 5, 0.5, 500ms, 2s or 1m",
  ]
}
