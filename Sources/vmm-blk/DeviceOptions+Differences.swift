/// Which options make a disk in a reread list a different disk.
internal import OperatorWords
internal import VirtioBlkDevice

extension DeviceOptions {
  /// The options in which two disks on the same socket differ.
  func differences(from other: DeviceOptions) -> [String] {
    ServeDisk.Word.allCases.filter { value(of: $0) != other.value(of: $0) }.map(\.rawValue)
  }

  /// The value of an option, as a text that is equal for equal values.
  private func value(of word: ServeDisk.Word) -> String {
    switch word {
    case .blkFile: imagePath.map { Takeover.absolute($0) } ?? ""
    case .image:
      imageServer?.text ?? imageChain?.mapPaths { Takeover.absolute($0) }.text
        ?? imageInCluster?.mapPaths { Takeover.absolute($0) }.text ?? ""
    case .socketPath: ""  // identifies the disk
    case .format: format.rawValue
    case .readOnly: "\(readOnly)"
    case .numQueues: "\(numQueues ?? ServeService.queues)"
    case .logicalBlockSize: "\(logicalBlockSize)"
    case .queueSizeMax: "\(queueSizeMax)"
    case .serial: serial ?? ""
    case .engine: engine.rawValue
    case .direct: direct.rawValue
    case .threads: "\(threads ?? 0)"
    case .pinCPUs: "\(pinCPUs?.processors ?? [])"
    case .waiting: tuning.waiting?.defaultValueDescription ?? ""
    case .pollUs: "\(tuning.pollUs ?? -1)"
    case .notify: tuning.notify.defaultValueDescription
    case .uring: tuning.uring.map { "\($0)" } ?? ""
    case .onError: onError.rawValue
    case .inject: "\(inject)"
    case .features: features?.text ?? ""
    case .noFeature: noFeature.map(\.text).joined(separator: ",")
    case .config: config?.choice.words ?? ""
    case .zoned: zoned?.text ?? ""
    case .noLock: "\(noLock)"
    case .breakLock: ""  // irrelevant once the image is open
    case .latencies: tuning.latencies.rawValue
    case .limit: (limit?.limits ?? RateLimits()).words
    case .reconnectTimeout: "\(reconnectTimeout)"
    case .serverKeepsWrites: "\(serverKeepsWrites)"
    }
  }
}
