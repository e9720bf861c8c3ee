/// How much of its life a device has used (virtio 5.2.6, GET_LIFETIME), for the kinds of devices that report it in the same
/// terms: eMMC and UFS.
internal import CLinux
internal import Glibc
internal import VirtioCore

/// What a device reports. Values that the specification reserves never get here.
struct DeviceLifetime: Equatable {
  /// The use of reserve blocks: 1: less than 80 % are used, 2: 80 %, 3: 90 %; 0: not reported.
  var preEOL: UInt8 = 0
  /// The wear of single-level cells: n: up to n · 10 % of their life is used, 11: they have exceeded it; 0: not reported.
  var typeA: UInt8 = 0
  /// The same for multi-level cells.
  var typeB: UInt8 = 0

  /// It reports nothing.
  var isEmpty: Bool { self == DeviceLifetime() }

  /// The answer to a driver: three numbers of 16 bits.
  var bytes: (UInt8, UInt8, UInt8, UInt8, UInt8, UInt8) { (preEOL, 0, typeA, 0, typeB, 0) }
  static let size = 6
}

/// The files in which the kernel reports it. They stay open, because the wear changes while the device is served; their owner,
/// the image, closes them.
struct LifetimeFiles: Sendable, Equatable {
  /// eMMC reports both types in one file, UFS in one file each.
  private(set) var typeA: Int32
  private(set) var typeB: Int32
  private(set) var preEOL: Int32

  /// - Parameter folder: the device's in /sys.
  /// - Returns: `nil` if it is not such a device, or reports nothing.
  init?(folder: String) {
    // For a partition, the device is that of its disk.
    let device = [folder + "/device", folder + "/../device"].first { !SystemText.names(in: $0).isEmpty } ?? folder + "/device"
    // For UFS, the files are those of the controller: host, target and unit lie between.
    let health = device + "/../../../health_descriptor"
    for names in [
      (device + "/life_time", device + "/life_time", device + "/pre_eol_info"),
      (health + "/life_time_estimation_a", health + "/life_time_estimation_b", health + "/eol_info"),
    ] {
      let typeA = unsafe clinux_open(names.0, O_RDONLY | O_CLOEXEC, 0)
      guard typeA >= 0 else { continue }
      self.typeA = typeA
      typeB = names.1 == names.0 ? typeA : unsafe clinux_open(names.1, O_RDONLY | O_CLOEXEC, 0)
      preEOL = unsafe clinux_open(names.2, O_RDONLY | O_CLOEXEC, 0)
      if let lifetime = read(), !lifetime.isEmpty { return }
      end()
    }
    return nil
  }

  func end() {
    close(typeA)
    if typeB >= 0, typeB != typeA { close(typeB) }
    if preEOL >= 0 { close(preEOL) }
  }

  /// Reads them from the kernel, which may query the device: only the queue that wants to know may wait for that.
  ///
  /// - Returns: `nil` if it cannot be read any more.
  func read() -> DeviceLifetime? {
    guard let first = Self.numbers(typeA) else { return nil }
    var lifetime = DeviceLifetime()
    lifetime.typeA = Self.known(first.0, most: 11)
    let second = typeB == typeA ? first.1 : typeB >= 0 ? Self.numbers(typeB)?.0 : nil
    lifetime.typeB = Self.known(second, most: 11)
    lifetime.preEOL = Self.known(preEOL >= 0 ? Self.numbers(preEOL)?.0 : nil, most: 3)
    return lifetime
  }

  private static func known(_ number: UInt8?, most: UInt8) -> UInt8 {
    guard let number, number <= most else { return 0 }
    return number
  }

  /// One or two numbers as in "0x01 0x0b".
  private static func numbers(_ descriptor: Int32) -> (UInt8?, UInt8?)? {
    unsafe withUnsafeTemporaryAllocation(byteCount: 32, alignment: 1) { buffer in
      let count = unsafe pread(descriptor, buffer.baseAddress!, buffer.count, 0)
      guard count > 0 else { return nil }
      var numbers: [UInt8?] = []
      for word in unsafe String(decoding: buffer.prefix(count), as: UTF8.self).split(whereSeparator: \.isWhitespace).prefix(2) {
        numbers.append(word.hasPrefix("0x") ? UInt8(word.dropFirst(2), radix: 16) : UInt8(word))
      }
      return (numbers.first ?? nil, numbers.count > 1 ? numbers[1] : nil)
    }
  }
}
