/// `vmm-blk image info`.
internal import ArgumentParser
internal import FoundationEssentials
internal import Qcow2
internal import VirtioCore

struct ImageInfoCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "info",
    abstract: "Show a qcow2 image: its size, clusters, backing file and snapshots.",
    discussion: """
      The names of the backing file and of the data file are shown as the image has them; these files are not opened. So an \
      image from elsewhere can be examined before it is served.
      """)

  @Argument(help: .init("The image.", valueName: "path")) var path: String
  @Flag(help: "Print JSON, with qemu-img's keys.") var json = false

  func run() throws {
    let image = try OpenImage(path)
    let header = try image.header()
    let snapshots: [Qcow2Snapshot]
    do throws(Qcow2Fault) { snapshots = try header.snapshots(image.source) } catch {
      throw ImageCommandError.unusable(path: path, error)
    }
    let info = Info(path, header, snapshots, actualSize: image.actualSize)
    print(json ? try JSONText.of(info) : info.text)
  }

  /// The fields that qemu-img shows.
  private struct Info: Encodable {
    enum CodingKeys: String, CodingKey {
      case filename, format, snapshots
      case virtualSize = "virtual-size"
      case actualSize = "actual-size"
      case clusterSize = "cluster-size"
      case dirty = "dirty-flag"
      case backing = "backing-filename"
      case backingFormat = "backing-filename-format"
      case specific = "format-specific"
    }

    struct Specific: Encodable {
      struct Data: Encodable {
        enum CodingKeys: String, CodingKey {
          case compat, corrupt
          case compression = "compression-type"
          case lazy = "lazy-refcounts"
          case refcountBits = "refcount-bits"
          case extended = "extended-l2"
          case dataFile = "data-file"
          case dataFileRaw = "data-file-raw"
        }

        var compat: String
        var compression: String
        var lazy: Bool
        var refcountBits: Int
        var corrupt: Bool
        var extended: Bool
        var dataFile: String?
        var dataFileRaw: Bool?
      }

      var type = "qcow2"
      var data: Data
    }

    struct Snapshot: Encodable {
      enum CodingKeys: String, CodingKey {
        case id, name
        case stateSize = "vm-state-size"
        case seconds = "date-sec"
        case nanoseconds = "date-nsec"
        case diskSize = "disk-size"
      }

      var id: String
      var name: String
      var stateSize: UInt64
      var seconds: UInt32
      var nanoseconds: UInt32
      var diskSize: UInt64
    }

    var filename: String
    var format = "qcow2"
    var virtualSize: UInt64
    var actualSize: UInt64
    var clusterSize: UInt64
    var dirty: Bool
    var backing: String?
    var backingFormat: String?
    var specific: Specific
    var snapshots: [Snapshot]?

    init(_ path: String, _ header: Qcow2Header, _ snapshots: [Qcow2Snapshot], actualSize: UInt64) {
      filename = path
      (virtualSize, clusterSize) = (header.size, header.clusterSize)
      self.actualSize = actualSize
      dirty = header.incompatible.contains(.dirty)
      (backing, backingFormat) = (header.backingText, header.backingFormat)
      specific = Specific(
        data: Specific.Data(
          compat: header.version == 2 ? "0.10" : "1.1", compression: "\(header.compression)", lazy: header.hasLazyRefcounts,
          refcountBits: 1 << Int(header.refcountOrder), corrupt: header.incompatible.contains(.corrupt),
          extended: header.geometry.isExtended, dataFile: header.dataFileText,
          dataFileRaw: header.hasDataFile ? header.isDataFileRaw : nil))
      if !snapshots.isEmpty {
        self.snapshots = snapshots.map {
          Snapshot(
            id: $0.id, name: $0.name, stateSize: $0.stateSize, seconds: $0.date.seconds, nanoseconds: $0.date.nanoseconds,
            diskSize: $0.diskSize ?? header.size)
        }
      }
    }

    var text: String {
      let data = specific.data
      var lines = [
        "image: \(printable(filename))", "file format: \(format)",
        "virtual size: \(ByteSize.describe(virtualSize)) (\(virtualSize) bytes)",
        "disk size: \(ByteSize.describe(actualSize))", "cluster_size: \(clusterSize)",
      ]
      if dirty { lines.append("cleanly shut down: no") }
      if let backing { lines.append("backing file: \(printable(backing))") }
      if let backingFormat { lines.append("backing file format: \(printable(backingFormat))") }
      if let snapshots {
        lines.append("Snapshot list:")
        lines += snapshots.map {
          "    \(printable($0.id)) \(printable($0.name)): a disk of \(ByteSize.describe($0.diskSize)), "
            + "a VM state of \(ByteSize.describe($0.stateSize))"
        }
      }
      lines += [
        "Format specific information:", "    compat: \(data.compat)", "    compression type: \(data.compression)",
        "    lazy refcounts: \(data.lazy)", "    refcount bits: \(data.refcountBits)", "    corrupt: \(data.corrupt)",
        "    extended l2: \(data.extended)",
      ]
      if let dataFile = data.dataFile { lines.append("    data file: \(printable(dataFile))") }
      if let raw = data.dataFileRaw { lines.append("    data file raw: \(raw)") }
      return lines.joined(separator: "\n")
    }
  }
}
