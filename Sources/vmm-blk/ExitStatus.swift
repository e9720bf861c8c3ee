/// One exit status for each kind of mistake, as sysexits.h numbers them.
internal import ArgumentParser
internal import Bench
internal import GuestDriver
internal import MemoryFile
internal import Sockets
internal import SystemPackage
internal import VhostUser
internal import VirtioBlkDevice

enum ExitStatus: Int32, CaseIterable {
  case success = 0
  /// What was looked for is not as it should be.
  case failure = 1
  case usage = 64
  case image = 66
  case unavailable = 69
  case io = 74
  case leftBehind = 75

  /// What it says, for --help.
  private var meaning: String {
    switch self {
    case .success: "all went well; SIGTERM and Ctrl-C end a server so"
    case .failure: "a disk, a queue or a result is not as it should be"
    case .usage: "the command line or a description cannot be meant so"
    case .image: "an image or a file is missing or cannot be used"
    case .unavailable: "a server, a socket, an engine or a resource is not there"
    case .io: "the system reports an error"
    case .leftBehind: "a server ended before all queues did"
    }
  }

  /// A table, a line for each.
  static let help = allCases.map { status in
    let number = "\(status.rawValue)"
    return String(repeating: " ", count: 6 - number.count) + number + "  " + status.meaning
  }.joined(separator: "\n")

  /// - Parameter error: what a command ended with; not one that asks for help or has a status of its own.
  init(_ error: any Error) {
    switch error {
    case let error as any ErrorWithStatus: self = error.status
    case is Errno: self = .io
    default: self = .usage
    }
  }
}

/// An error that knows of what kind it is.
protocol ErrorWithStatus: Error {
  var status: ExitStatus { get }
}

extension ValidationError: ErrorWithStatus {
  var status: ExitStatus { .usage }
}

extension ImageError: ErrorWithStatus {
  var status: ExitStatus {
    switch self {
    case .badBlockSize, .directNeedsLargerBlocks, .noDirect: .usage
    default: .image
    }
  }
}

extension EngineError: ErrorWithStatus {
  var status: ExitStatus {
    switch self {
    case .badQueueCount, .badQueueSize, .badThreadCount, .badProcessor, .notCached, .nothingToFail: .usage
    default: .unavailable
    }
  }
}

extension MemoryFileError: ErrorWithStatus {
  var status: ExitStatus { .image }
}

extension SocketError: ErrorWithStatus {
  var status: ExitStatus { .unavailable }
}

extension ServeFileLimitError: ErrorWithStatus {
  var status: ExitStatus { .unavailable }
}

extension ServeDiskListError: ErrorWithStatus {
  var status: ExitStatus {
    switch self {
    case .cannotRead: .image
    case .notJSON, .noDisks: .usage
    case .entry(_, _, _, _, let status): status
    }
  }
}

extension DriverError: ErrorWithStatus {
  var status: ExitStatus {
    switch self {
    case .system: .io
    case .badRegion, .memoryFull, .badQueueSize, .tooManyQueues, .badRequest: .usage
    case .noDevice, .refused, .timeout, .wrongDevice, .featuresRefused, .noPackedRing: .unavailable
    case .fault, .queueFailed, .requestFailed: .failure
    }
  }
}

extension VerifyError: ErrorWithStatus {
  var status: ExitStatus { .failure }
}

extension BenchError: ErrorWithStatus {
  var status: ExitStatus {
    switch self {
    case .diskTooSmall, .badBlockSize, .depthExceedsRing, .readOnlyDisk, .cannotSleep: .usage
    case .noThread, .noMemory, .target, .unavailable: .unavailable
    case .system: .io
    case .report: .image
    case .brokenRing, .requestFailed, .wrongData, .noAnswer: .failure
    }
  }
}
