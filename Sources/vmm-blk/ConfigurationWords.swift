/// Fields of the configuration space in words: `seg_max=62,max_discard_sectors=8192`.
internal import ArgumentParser
internal import VirtioBlkDevice
internal import VirtioCore

struct ConfigurationWords: ExpressibleByArgument, Equatable {
  let choice: ConfigurationChoice

  static let forms =
    "fields of \(ConfigurationField.allCases.map(\.rawValue).joined(separator: ", ")), each once, as in seg_max=62,size_max=64k"

  init?(argument: String) {
    var choice = ConfigurationChoice()
    for part in argument.split(separator: ",", omittingEmptySubsequences: false) {
      let sides = part.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
      guard sides.count == 2, let field = ConfigurationField(rawValue: String(sides[0])), choice[field] == nil,
        let number = ByteSize.parse(String(sides[1])), let value = UInt32(exactly: number)
      else { return nil }
      choice[field] = value
    }
    self.choice = choice
  }

  var defaultValueDescription: String { choice.words }
}
