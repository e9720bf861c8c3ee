/// The verbs of `vmm-blk guest` for disks with zones: zones, zone, append.
internal import ArgumentParser
internal import GuestDriver
internal import OperatorWords

struct GuestZones: GuestVerb {
  static let configuration = CommandConfiguration(
    commandName: "zones", abstract: "Show a zoned disk's zones: number, state, first sector, write pointer, capacity.",
    usage: GuestTarget.usage("zones"))

  @ParentCommand var guest: Guest
  @OptionGroup var target: GuestTarget

  func run() throws {
    try withDisk { client in
      for (number, zone) in try client.zones().enumerated() {
        let pointer = [.notWritePointer, .full, .readOnly, .offline].contains(zone.state) ? "-" : "\(zone.pointer)"
        print("\(number)\t\(zone.state)\t\(zone.start)\t\(pointer)\t\(zone.capacity)")
      }
    }
  }
}

struct GuestZone: GuestVerb {
  enum Action: String, CaseIterable, ExpressibleByArgument {
    case open, close, finish, reset

    var type: BlockRequestType {
      switch self {
      case .open: .zoneOpen
      case .close: .zoneClose
      case .finish: .zoneFinish
      case .reset: .zoneReset
      }
    }
  }

  static let configuration = CommandConfiguration(
    commandName: "zone", abstract: "Open, close, finish or reset a zone of a zoned disk.",
    usage: GuestTarget.usage("zone open|close|finish|reset <zone>") + "\n" + GuestTarget.usage("zone reset all"))

  @ParentCommand var guest: Guest
  @OptionGroup var target: GuestTarget

  @Argument(help: "open, close, finish or reset.") var action: Action
  @Argument(help: "The zone's number, 0 for the first; 'all' to reset every one.") var zone: String

  func validate() throws {
    guard Int(zone) != nil || zone == "all" && action == .reset else {
      throw ValidationError("'\(zone)' is not the number of a zone; 'all' is only possible with 'reset'.")
    }
  }

  func run() throws {
    try withDisk { client in
      guard let number = Int(zone) else { return try client.resetAllZones() }
      try client.changeZone(action.type, number)
    }
  }
}

struct GuestAppend: GuestVerb {
  static let configuration = CommandConfiguration(
    commandName: "append", abstract: "Append bytes to a zone of a zoned disk, and show the sector where they went.",
    usage: GuestTarget.usage("append <zone> --text|--hex|--fill …"),
    discussion: "The end is padded with zeroes to the smallest unit that the disk writes. Nothing is flushed: see 'flush'.")

  @ParentCommand var guest: Guest
  @OptionGroup var target: GuestTarget

  @Argument(help: "The zone's number, 0 for the first.") var zone: Int
  @OptionGroup var bytes: BytesToWrite

  func run() throws {
    try withDisk { client in
      let zoned = try client.zoning()
      let grain = max(1, UInt64(zoned.granularity))
      let most = min(UInt64(zoned.maximumAppend) * 512, UInt64(client.chunk)) / grain * grain
      let source = bytes.source
      var done: UInt64 = 0
      while done < source.count {
        let count = min(source.count - done, max(most, grain))
        var piece = source.part(from: done, count: Int(count))
        piece += [UInt8](repeating: 0, count: (Int(grain) - piece.count % Int(grain)) % Int(grain))
        print(try client.append(piece, toZone: zone))
        done += count
      }
    }
  }
}
