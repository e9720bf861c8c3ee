/// The zones of an image that is being opened.
internal import VirtioCore

extension ZonedDisk {
  /// - Throws: why the image cannot have zones.
  convenience init(of image: ImageDescription, path: String, _ options: ZonedOptions) throws(ZoneFailure) {
    guard !image.isReadOnly else { throw .readOnly(path: path) }
    let request = UInt64(BlockDeviceOptions.maximumSegments) * UInt64(BlockDeviceOptions.maximumSegmentSize)
    let geometry = try options.geometry(size: image.size, block: image.logicalBlockSize, request: request)
    guard (1...256).contains(options.queues), (4...32768).contains(options.ringEntries) else {
      throw .badOption("queues", "use 1 to 256 queues of 4 to 32768 entries")
    }
    let file = try ZoneFile(
      path: options.file ?? path + ".zones", geometry, identity: Self.identity(of: image.serial), adopts: options.adopts,
      queues: options.queues, notes: options.ringEntries)
    self.init(file, options, ringEntries: options.ringEntries)
  }

  /// The part of an image's serial number that does not change when it is renamed: the hash after its name.
  private static func identity(of serial: String) -> UInt64 {
    ZoneFileLayout.sum((serial.split(separator: "-").last ?? "").utf8.map { UInt64($0) })
  }
}
