/// What distinguishes one image from another, for as long as it exists.
internal import CLinux
internal import Glibc

enum ImageIdentity {
  /// The serial number if none was chosen, so that the disks of a guest have different and stable names there
  /// (/dev/disk/by-id): the beginning of the file's name, and a hash of what does not change when the image is renamed, written
  /// to, or served again after a restart. That is a file's inode and creation time, or a block device's own name (WWID, UUID,
  /// serial number); if the system has neither, it is the path.
  ///
  /// - Returns: 1 to 20 printable ASCII characters.
  static func serial(path: String, _ descriptor: Int32, _ info: stat, isBlockDevice: Bool) -> String {
    let identity: String
    if isBlockDevice {
      identity = SystemDevice(info.st_rdev).lastingName ?? path
    } else {
      let birth = clinux_birth_time(descriptor)
      identity = "\(info.st_ino) " + (birth > 0 ? "\(birth)" : path)
    }
    return serial(name: path.split(separator: "/").last ?? "disk", identity: identity)
  }

  /// The beginning of a name, and a hash of what distinguishes images.
  static func serial(name: some StringProtocol, identity: String) -> String {
    let name = name.unicodeScalars.map { scalar in (0x21...0x7e).contains(scalar.value) ? Character(scalar) : "_" }
    return String(name.prefix(11)) + "-" + hash(identity)
  }

  /// FNV-1a of 64 bits, folded to eight digits.
  private static func hash(_ text: String) -> String {
    var hash: UInt64 = 0xcbf2_9ce4_8422_2325
    for byte in text.utf8 { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01b3 }
    let digits = String(UInt32(truncatingIfNeeded: hash ^ hash >> 32), radix: 16)
    return String(repeating: "0", count: 8 - digits.count) + digits
  }
}
