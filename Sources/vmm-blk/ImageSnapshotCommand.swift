/// `vmm-blk image snapshot`: internal snapshots, as `qemu-img snapshot`.
internal import ArgumentParser
internal import CLinux
internal import Glibc
internal import OperatorWords
internal import Qcow2
internal import VirtioBlkDevice
internal import VirtioCore

struct ImageSnapshotCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "snapshot",
    abstract: "List the internal snapshots of a qcow2 image, create, apply or delete them.",
    usage: """
      vmm-blk image snapshot [--list] <path>
      vmm-blk image snapshot --create|--apply|--delete <snapshot> <path>
      """,
    discussion: """
        vmm-blk image snapshot -c before-the-upgrade disk.qcow2
        vmm-blk image snapshot -a before-the-upgrade disk.qcow2

      Nobody may have the image open, except for -l. Each change is made completely or not at all, whenever the command \
      ends. Applying a snapshot discards the present contents of the disk; the snapshot stays. A snapshot can be served with \
      '--read-only' and 'qcow2:PATH?snapshot=NAME'.
      """)

  @Flag(name: [.customShort("l"), .customLong("list")], help: "List the snapshots. (default)") var lists = false
  @Option(
    name: [.customShort("c"), .customLong("create")],
    help: .init("Create a snapshot of the disk as it is now.", valueName: "snapshot"))
  var created: String?
  @Option(
    name: [.customShort("a"), .customLong("apply")], help: .init("Revert the disk to a snapshot.", valueName: "snapshot"))
  var applied: String?
  @Option(
    name: [.customShort("d"), .customLong("delete")],
    help: .init("Delete a snapshot, by name or number.", valueName: "snapshot"))
  var deleted: String?
  @Argument(help: .init("The image.", valueName: "path")) var path: String

  func validate() throws {
    guard [created, applied, deleted].count(where: { $0 != nil }) + (lists ? 1 : 0) <= 1 else {
      throw ValidationError("Give one of -l, -c, -a and -d.")
    }
  }

  func run() throws {
    do throws(ImageToolFailure) {
      if let created {
        try Qcow2Editor(path: path).createSnapshot(created, date: Self.now)
      } else if let applied {
        try Qcow2Editor(path: path).applySnapshot(applied)
      } else if let deleted {
        try Qcow2Editor(path: path).deleteSnapshot(deleted)
      }
    } catch { throw ImageCommandError.tool(error) }
    if created == nil, applied == nil, deleted == nil { try list() }
  }

  private static var now: (seconds: UInt32, nanoseconds: UInt32) {
    var time = timespec()
    unsafe clock_gettime(CLOCK_REALTIME, &time)
    return (UInt32(truncatingIfNeeded: time.tv_sec), UInt32(truncatingIfNeeded: time.tv_nsec))
  }

  private func list() throws {
    let image = try OpenImage(path)
    let header = try image.header()
    let snapshots: [Qcow2Snapshot]
    do throws(Qcow2Fault) { snapshots = try header.snapshots(image.source) } catch {
      throw ImageCommandError.unusable(path: path, error)
    }
    guard !snapshots.isEmpty else { return }
    var rows = [["ID", "TAG", "VM SIZE", "DATE", "VM CLOCK"]]
    rows += snapshots.map {
      [printable($0.id), printable($0.name), ByteSize.describe($0.stateSize), Self.date($0.date.seconds), Self.clock($0.clock)]
    }
    let widths = rows[0].indices.map { column in rows.map { $0[column].count }.max() ?? 0 }
    print("Snapshot list:")
    for row in rows {
      let cells = zip(row, widths).enumerated().map { column, cell in
        let fill = String(repeating: " ", count: cell.1 - cell.0.count)
        // Sizes and times are right-aligned, as in qemu-img.
        return column < 2 ? cell.0 + fill : fill + cell.0
      }
      print(cells.joined(separator: "  "))
    }
  }

  /// In local time.
  private static func date(_ seconds: UInt32) -> String {
    var time = time_t(seconds)
    var parts = unsafe tm()
    guard unsafe localtime_r(&time, &parts) != nil else { return "\(seconds)" }
    let (year, month, day) = unsafe (parts.tm_year, parts.tm_mon, parts.tm_mday)
    let (hour, minute, second) = unsafe (parts.tm_hour, parts.tm_min, parts.tm_sec)
    func two(_ number: Int32) -> String { number < 10 ? "0\(number)" : "\(number)" }
    return "\(year + 1900)-\(two(month + 1))-\(two(day)) \(two(hour)):\(two(minute)):\(two(second))"
  }

  /// The time that the virtual machine had run: hours, minutes, seconds and milliseconds.
  private static func clock(_ nanoseconds: UInt64) -> String {
    func digits(_ number: UInt64, _ count: Int) -> String {
      String(repeating: "0", count: max(0, count - "\(number)".count)) + "\(number)"
    }
    let milliseconds = nanoseconds / 1_000_000
    let seconds = milliseconds / 1000
    return
      "\(digits(seconds / 3600, 2)):\(digits(seconds / 60 % 60, 2)):\(digits(seconds % 60, 2)).\(digits(milliseconds % 1000, 3))"
  }
}
