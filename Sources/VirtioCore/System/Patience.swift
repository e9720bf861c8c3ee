/// How long to wait for what has to come.

/// One limit for every wait whose end is certain unless something hangs: in tests, and wherever a program has to tell "slow"
/// from "never". It is no measure of speed, so it is far beyond what a loaded machine takes.
public enum Patience {
  /// What has to happen and has not happened by then is considered hung.
  public static let limit: Duration = .seconds(120)
}
