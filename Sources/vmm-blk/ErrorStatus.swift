/// The exit status of each error that ends a command.
internal import ArgumentParser
internal import Bench
internal import GuestDriver
internal import MemoryFile
internal import OperatorWords
internal import Sockets
internal import VirtioBlkDevice

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
