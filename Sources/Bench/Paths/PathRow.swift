/// One row of the laboratory: one way to serve requests, described in words and as options of a device.
internal import VirtioBlkDevice

/// The kinds of rows; each answers a question about setting up a disk.
public enum PathGroup: String, CaseIterable, Sendable, Codable {
  /// The limit: the calls alone.
  case bare
  case engine
  case uring
  case waiting
  case notification

  var title: String {
    switch self {
    case .bare: "bare loops: the same calls without virtio"
    case .engine: "engines"
    case .uring: "io_uring set-ups"
    case .waiting: "how the device waits for work"
    case .notification: "how the device notifies (the client sleeps until it is called)"
    }
  }
}

struct PathRow: Sendable {
  enum Subject: Sendable {
    case bare(BareKind)
    case device(BlockDeviceOptions, DriverManners)
    /// What this machine or this build cannot do, and why.
    case impossible(String)
  }

  /// What the driver's side does, if that is part of the question.
  struct DriverManners: Sendable {
    var sleeps = false
    var usesEventIndex = true
  }

  /// In files: letters and hyphens.
  var id: String
  var group: PathGroup
  /// In tables: a few words.
  var title: String
  /// What it is, for a reader who sees it for the first time.
  var sentence: String
  /// What selects it on the command line of `serve` and `run`; `nil`: only a program can.
  var flags: String?
  /// The bare loop of the same calls; `nil` if there is none.
  var limit: BareKind?
  var subject: Subject
}
