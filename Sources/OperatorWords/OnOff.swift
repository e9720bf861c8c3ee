/// A word of an option.
internal import ArgumentParser

package enum OnOff: String, ExpressibleByArgument, CaseIterable {
  case on
  case off
}
