/// How long to wait for an event that has to come.

/// One limit for every wait whose end is certain unless something hangs: in tests, and wherever a program has to tell "slow"
/// from "never". It says nothing about speed: it is far longer than a loaded machine takes.
public enum Patience {
  /// An operation that has not finished by then is considered hung.
  public static let limit: Duration = .seconds(120)
}
