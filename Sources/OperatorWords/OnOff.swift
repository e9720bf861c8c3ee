/// The value of an option that is on or off.
internal import ArgumentParser

package enum OnOff: String, ExpressibleByArgument, CaseIterable {
  case on
  case off
}
