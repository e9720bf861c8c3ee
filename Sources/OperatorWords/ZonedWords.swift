/// Zones in words: `host-managed,zone-size=64M,max-open=14`.
internal import ArgumentParser
package import VirtioBlkDevice
internal import VirtioCore

package struct ZonedWords: ExpressibleByArgument, Equatable {
  package let options: ZonedOptions
  /// As it was typed.
  package let text: String

  package static let help =
    "host-managed, optionally followed by zone-size, zone-capacity, max-append and granularity (in bytes), conventional (number of "
    + "zones at the beginning), max-open and max-active (number of zones; 0: any), read-only and offline (a zone's number; may be "
    + "repeated), file (where the zones' states are stored) and adopt (accept the states of the image that this one is a copy of), "
    + "separated by commas."

  package static let forms =
    "host-managed with zone-size=, zone-capacity=, conventional=, max-open=, max-active=, max-append=, granularity=, read-only=, "
    + "offline=, file= or adopt after it, as in host-managed,zone-size=64M"

  package init?(argument: String) {
    text = argument
    var options = ZonedOptions()
    var words = argument.split(separator: ",", omittingEmptySubsequences: false)[...]
    guard words.popFirst() == "host-managed" else { return nil }
    var seen: Set<Substring> = []
    for part in words {
      let sides = part.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
      guard let word = sides.first, word == "read-only" || word == "offline" || seen.insert(word).inserted else { return nil }
      if sides.count == 1 {
        guard word == "adopt" else { return nil }
        options.adopts = true
        continue
      }
      let value = String(sides[1])
      if word == "file" {
        guard !value.isEmpty, !value.utf8.contains(0) else { return nil }
        options.file = value
        continue
      }
      guard let number = ByteSize.parse(value), Self.set(word, number, &options) else { return nil }
    }
    self.options = options
  }

  private static func set(_ word: Substring, _ number: UInt64, _ options: inout ZonedOptions) -> Bool {
    switch word {
    case "zone-size": options.zoneSize = number
    case "zone-capacity": options.zoneCapacity = number
    case "max-append": options.maximumAppend = number
    case "granularity": options.granularity = number
    default:
      guard let small = UInt32(exactly: number) else { return false }
      switch word {
      case "conventional": options.conventional = Int(small)
      case "max-open": options.maximumOpen = small
      case "max-active": options.maximumActive = small
      case "read-only": options.readOnlyZones.append(Int(small))
      case "offline": options.offlineZones.append(Int(small))
      default: return false
      }
    }
    return true
  }

  package var defaultValueDescription: String { text }

  package static func == (one: Self, other: Self) -> Bool { one.options == other.options }
}
