/// One entry of the file that `serve --disks` reads: a disk in the words of the command line.
internal import ArgumentParser
internal import FoundationEssentials
internal import VirtioBlkDevice
internal import VirtioCore

/// What a disk is, and where it is served.
package struct ServeDisk {
  package var options: DeviceOptions
  package var socketPath: String
}

extension ServeDisk: DecodableWithConfiguration {
  /// The words of an entry: those of the command line, without the dashes in front.
  package enum Word: String, CaseIterable {
    case blkFile = "blk-file"
    case image
    case socketPath = "socket-path"
    case format
    case readOnly = "read-only"
    case numQueues = "num-queues"
    case logicalBlockSize = "logical-block-size"
    case queueSizeMax = "queue-size-max"
    case serial
    case engine
    case direct
    case threads
    case pinCPUs = "pin-cpus"
    case waiting
    case pollUs = "poll-us"
    case notify
    case uring
    case onError = "on-error"
    case inject
    case features
    case noFeature = "no-feature"
    case config
    case zoned
    case noLock = "no-lock"
    case breakLock = "break-lock"
    case latencies
    case limit
    case reconnectTimeout = "reconnect-timeout"
    case serverKeepsWrites = "server-keeps-writes"

    /// Other names, as the command line has them.
    private static let otherNames = ["queues": Word.numQueues]

    /// The word by any of its names; `nil` if there is none.
    package init?(name: String) {
      guard let word = Word(rawValue: name) ?? Self.otherNames[name] else { return nil }
      self = word
    }

    /// All names that it goes by.
    fileprivate var names: [String] { [rawValue] + Self.otherNames.filter { $0.value == self }.map(\.key) }
  }

  /// - Parameter defaults: the command line's own options, which apply to what the entry does not set.
  /// - Throws: `ServeDiskMistake`, or what the options' own validation says.
  package init(from decoder: any Decoder, configuration defaults: DeviceOptions) throws {
    guard let values = try? decoder.container(keyedBy: WordKey.self) else { throw ServeDiskMistake.notAnObject }
    var given: [Word: String] = [:]
    for key in values.allKeys.map(\.stringValue).sorted() {
      guard let word = Word(name: key) else { throw ServeDiskMistake.unknownWord(key) }
      if let other = given.updateValue(key, forKey: word) { throw ServeDiskMistake.twoNames(other, key) }
    }
    let entry = Entry(values: values)
    let (blkFile, image) = (try entry.text(.blkFile), try entry.text(.image))
    guard blkFile != nil || image != nil else { throw ServeDiskMistake.missing(.blkFile) }
    guard blkFile == nil || image == nil else { throw ServeDiskMistake.twoImages }
    guard let socketPath = try entry.text(.socketPath) else { throw ServeDiskMistake.missing(.socketPath) }
    var options = defaults
    (options.blkFile, options.image) = (blkFile, image)
    options.format = try entry.choice(.format) ?? defaults.format
    options.readOnly = try entry.flag(.readOnly) ?? defaults.readOnly
    options.numQueues = try entry.number(.numQueues) ?? defaults.numQueues
    options.blockSize = try entry.size(.logicalBlockSize) ?? defaults.blockSize
    options.queueSizeMax = try entry.number(.queueSizeMax) ?? defaults.queueSizeMax
    options.serial = try entry.text(.serial) ?? defaults.serial
    options.engine = try entry.choice(.engine) ?? defaults.engine
    options.direct = try entry.choice(.direct) ?? defaults.direct
    options.threads = try entry.number(.threads) ?? defaults.threads
    options.pinCPUs = try entry.processors(.pinCPUs) ?? defaults.pinCPUs
    let waiting: Waiting? = try entry.argument(.waiting, "sleep, poll:US, adaptive:US or busy")
    let pollUs = try entry.number(.pollUs)
    // Two ways to say the same: either one in the entry overrides the command line's; giving both is a mistake here, too.
    if waiting != nil || pollUs != nil { (options.tuning.waiting, options.tuning.pollUs) = (waiting, pollUs) }
    options.tuning.notify =
      try entry.argument(.notify, "batch, each or coalesce:COUNT:US") ?? defaults.tuning.notify
    options.tuning.uring = try entry.uring(.uring) ?? defaults.tuning.uring
    options.onError = try entry.choice(.onError) ?? defaults.onError
    options.inject = try entry.rules(.inject) ?? defaults.inject
    options.features = try entry.features(.features) ?? defaults.features
    options.noFeature = try entry.features(.noFeature).map { [$0] } ?? defaults.noFeature
    options.config = try entry.argument(.config, ConfigurationWords.forms) ?? defaults.config
    options.zoned = try entry.argument(.zoned, ZonedWords.forms) ?? defaults.zoned
    options.noLock = try entry.flag(.noLock) ?? defaults.noLock
    // On the command line, it applies to the disks that take a lock.
    options.breakLock = try entry.flag(.breakLock) ?? (defaults.breakLock && options.takesClusterLock)
    options.limit = try entry.argument(.limit, LimitChange.forms) ?? defaults.limit
    options.reconnectTimeout = try entry.number(.reconnectTimeout) ?? defaults.reconnectTimeout
    options.serverKeepsWrites = try entry.flag(.serverKeepsWrites) ?? defaults.serverKeepsWrites
    options.tuning.latencies = try entry.choice(.latencies) ?? defaults.tuning.latencies
    try options.validate()
    try options.tuning.validate()
    self.options = options
    self.socketPath = socketPath
  }

  /// Any word at all, so that the unknown ones are seen, too.
  private struct WordKey: CodingKey {
    let stringValue: String
    var intValue: Int? { nil }
    init(_ word: Word) { stringValue = word.rawValue }
    init(stringValue: String) { self.stringValue = stringValue }
    init?(intValue: Int) { nil }
  }

  /// Decodes each kind of value, with the message for a value of another kind. A missing word and one that is `null` are the
  /// same.
  private struct Entry {
    let values: KeyedDecodingContainer<WordKey>

    func text(_ word: Word) throws -> String? {
      let text: String? = try value(word, "a string")
      // For the kernel a path ends at the NUL, so it would be another path than the text says.
      if text?.utf8.contains(0) == true { throw ServeDiskMistake.wrongValue(word, expected: "a string without a NUL in it") }
      if text == "", word != .serial { throw ServeDiskMistake.wrongValue(word, expected: "a string that is not empty") }
      return text
    }
    func number(_ word: Word) throws -> Int? { try value(word, "a whole number") }
    func flag(_ word: Word) throws -> Bool? { try value(word, "true or false") }

    /// A number of bytes, or a string as the command line has it.
    func size(_ word: Word) throws -> ByteCount? {
      if let bytes = try? values.decodeIfPresent(UInt64.self, forKey: key(word)) { return ByteCount(bytes) }
      return try argument(word, ByteSize.forms)
    }

    func choice<Choice: RawRepresentable<String> & CaseIterable & ExpressibleByArgument>(_ word: Word) throws -> Choice? {
      guard let name = try text(word) else { return nil }
      guard let choice = Choice(argument: name) else {
        throw ServeDiskMistake.wrongValue(word, expected: "one of " + Choice.allCases.map(\.rawValue).joined(separator: ", "))
      }
      return choice
    }

    func processors(_ word: Word) throws -> ProcessorList? {
      try argument(word, "a list of CPUs, as in \"0,2,4-6\"")
    }

    /// One rule, or an array of them.
    func rules(_ word: Word) throws -> [FaultRule]? {
      let mistake = ServeDiskMistake.wrongValue(
        word, expected: "a rule as in \"write:eio:rate=0.01\" ('vmm-blk serve --help' describes them), or an array of rules")
      let texts: [String]
      if let one = try? values.decodeIfPresent(String.self, forKey: key(word)) {
        texts = [one]
      } else {
        do {
          guard let many = try values.decodeIfPresent([String].self, forKey: key(word)) else { return nil }
          texts = many
        } catch { throw mistake }
      }
      return try texts.map {
        guard let rule = FaultRule($0) else { throw mistake }
        return rule
      }
    }

    func uring(_ word: Word) throws -> UringSetup? {
      guard let text = try text(word) else { return nil }
      do throws(UringMistake) { return try UringSetup(words: text) } catch { throw ServeDiskMistake.wrongUring(error) }
    }

    func features(_ word: Word) throws -> FeatureList? {
      guard let text = try text(word) else { return nil }
      do { return try FeatureList(text) } catch { throw ServeDiskMistake.wrongFeature(word, error) }
    }

    /// A string in the form that the command line accepts.
    func argument<Value: ExpressibleByArgument>(_ word: Word, _ expected: String) throws -> Value? {
      guard let text = try text(word) else { return nil }
      guard let value = Value(argument: text) else { throw ServeDiskMistake.wrongValue(word, expected: expected) }
      return value
    }

    /// The key with the name that is present.
    private func key(_ word: Word) -> WordKey {
      word.names.compactMap(WordKey.init(stringValue:)).first { values.contains($0) } ?? WordKey(word)
    }

    private func value<Value: Decodable>(_ word: Word, _ expected: String) throws -> Value? {
      do { return try values.decodeIfPresent(Value.self, forKey: key(word)) } catch {
        throw ServeDiskMistake.wrongValue(word, expected: expected)
      }
    }
  }
}

/// What is wrong with an entry, without saying which entry.
package enum ServeDiskMistake: Error, CustomStringConvertible {
  case notAnObject
  case unknownWord(String)
  case missing(ServeDisk.Word)
  case twoImages
  /// Two names of one word.
  case twoNames(String, String)
  case wrongValue(ServeDisk.Word, expected: String)
  case wrongFeature(ServeDisk.Word, FeatureMistake)
  case wrongUring(UringMistake)

  package var description: String {
    switch self {
    case .notAnObject: "it has to be an object: { \"blk-file\": …, \"socket-path\": … }"
    case .unknownWord(let word):
      "there is no \"\(printable(word))\""
        + (CloseWord.find(to: word, among: ServeDisk.Word.allCases.map(\.rawValue)).map { "; did you mean \"\($0)\"?" }
          ?? ": use " + ServeDisk.Word.allCases.map { "\"\($0.rawValue)\"" }.joined(separator: ", "))
    case .missing(.blkFile): "\"blk-file\" is missing: every disk needs one, or an \"image\""
    case .twoImages: "\"blk-file\" and \"image\" both name the image: give one of them"
    case .twoNames(let one, let other): "\"\(one)\" and \"\(other)\" are two names of one member: give one of them"
    case .missing(let word): "\"\(word.rawValue)\" is missing: every disk needs one"
    case .wrongFeature(let word, let mistake): "\"\(word.rawValue)\": \(mistake)"
    case .wrongUring(.unknown): "\"uring\" has to be words of 'serve --uring' separated by commas"
    case .wrongUring(let mistake): "\"uring\": \(mistake)"
    case .wrongValue(let word, let expected): "\"\(word.rawValue)\" has to be \(expected)"
    }
  }
}
