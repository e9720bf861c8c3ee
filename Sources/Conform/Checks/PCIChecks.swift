/// virtio-pci (virtio 4.1): what a kernel's PCI core and its virtio driver use.
internal import GuestDriver
internal import VirtioCore

/// A function by its spaces: 0 is its configuration space, 1 + n is BAR n, as in a memory file's mailbox.
struct PCIWindow {
  let port: any RegisterPort

  func config(_ offset: UInt32, _ width: Int) throws -> UInt64 { try port.read(offset, width) }
  func write(_ offset: UInt32, _ width: Int, _ value: UInt64) throws { try port.write(offset, width, value) }

  struct Capability: Sendable {
    var at: UInt32
    var id: UInt8
    /// The cfg_type of a virtio capability.
    var type: UInt8
    var length: UInt8
    var bar: UInt8
    var offset: UInt32
    var size: UInt32
  }

  /// All capabilities, in the order of the list.
  func capabilities() throws -> [Capability] {
    var found: [Capability] = []
    guard try config(0x06, 2) & 0x10 != 0 else { return [] }
    var at = UInt32(try config(0x34, 1)) & ~3
    while at >= 0x40 {
      try expect(found.count < 48 && !found.contains { $0.at == at }, "the capability list has no end")
      let id = UInt8(try config(at, 1))
      var capability = Capability(at: at, id: id, type: 0, length: 0, bar: 0, offset: 0, size: 0)
      if id == 9 {
        capability.length = UInt8(try config(at + 2, 1))
        capability.type = UInt8(try config(at + 3, 1))
        capability.bar = UInt8(try config(at + 4, 1))
        capability.offset = UInt32(try config(at + 8, 4))
        capability.size = UInt32(try config(at + 12, 4))
      }
      found.append(capability)
      at = UInt32(try config(at + 1, 1)) & ~3
    }
    return found
  }

  /// The first virtio structure of a type.
  func structure(_ type: UInt8, _ what: String) throws -> Capability {
    guard let found = try capabilities().first(where: { $0.id == 9 && $0.type == type }) else {
      throw Trouble.broken("there is no \(what) capability (cfg_type \(type))")
    }
    return found
  }

  func bar(_ bar: UInt8, _ offset: UInt32) -> UInt32 { (UInt32(bar) + 1) << 28 | offset }

  /// A field of the common configuration.
  func common(_ field: UInt32, _ width: Int) throws -> UInt64 {
    let place = try structure(1, "common configuration")
    return try port.read(bar(place.bar, place.offset + field), width)
  }

  func setCommon(_ field: UInt32, _ width: Int, _ value: UInt64) throws {
    let place = try structure(1, "common configuration")
    try port.write(bar(place.bar, place.offset + field), width, value)
  }

  func selectQueue(_ queue: Int) throws { try setCommon(0x16, 2, UInt64(queue)) }

  /// The offset of the MSI-X capability, and the number of vectors; `nil` if there is none.
  func vectors() throws -> (at: UInt32, count: Int)? {
    guard let found = try capabilities().first(where: { $0.id == 0x11 }) else { return nil }
    return (found.at, Int(try config(found.at + 2, 2) & 0x7ff) + 1)
  }
}

extension Bench {
  fileprivate func pci() throws -> PCIWindow { PCIWindow(port: try registers()) }
}

extension Check {
  /// A check of fields that does not bring the device up first.
  private static func look(
    _ name: String, _ clauses: String, _ title: String, needs: [Need] = [.pciModern],
    _ body: @escaping @Sendable (PCIWindow, Bench) throws -> String
  ) -> Check {
    Check(name, clauses, title, rings: .once, needs: needs) { bench in .kept(try body(try bench.pci(), bench)) }
  }

  static let pci: [Check] = [
    look("vendor", "pci.id.2 pci.id.3", "The vendor is 0x1AF4, the device a block device.", needs: [.pci]) { pci, _ in
      let (vendor, device) = (try pci.config(0, 2), try pci.config(2, 2))
      try expect(vendor == 0x1af4, "the vendor is 0x\(String(vendor, radix: 16))")
      try expect(device == 0x1042 || device == 0x1001, "the device is 0x\(String(device, radix: 16))")
      return "0x\(String(device, radix: 16))"
    },
    look(
      "modern-identity", "pci.id.5 pci.id.6 pci.id.7", "A function without legacy interface has a modern identity.",
      needs: [.pciModern]
    ) { pci, bench in
      guard bench.facts.bus == .pci else { throw Trouble.notApplicable("this function has a legacy interface") }
      let (device, revision, subsystem) = (try pci.config(2, 2), try pci.config(8, 1), try pci.config(0x2e, 2))
      try expect(device == 0x1042, "the device is 0x\(String(device, radix: 16))")
      try expect(revision >= 1, "the revision is \(revision)")
      try expect(subsystem >= 0x40, "the subsystem device is \(subsystem)")
      return ""
    },
    look(
      "transitional-identity", "legacy.pci.1 legacy.pci.2 legacy.pci.3",
      "A transitional function has revision 0, the subsystem 2 and device 0x1001.", needs: [.pciLegacy]
    ) { pci, _ in
      let (device, revision, subsystem) = (try pci.config(2, 2), try pci.config(8, 1), try pci.config(0x2e, 2))
      try expect(revision == 0, "the revision is \(revision)")
      try expect(subsystem == 2, "the subsystem device is \(subsystem)")
      try expect(device == 0x1001, "the device is 0x\(String(device, radix: 16))")
      return ""
    },
    look(
      "legacy-bar", "legacy.pci.4 legacy.pci.8", "BAR 0 is I/O, and the legacy registers are at its beginning.",
      needs: [.pciLegacy]
    ) { pci, bench in
      let kind = try pci.config(0x10, 4)
      try expect(kind & 1 == 1, "BAR 0 reads 0x\(String(kind, radix: 16)), which is not I/O")
      let features = try pci.port.read(pci.bar(0, 0), 4)
      try expect(
        features & (1 << 9) != 0 || !bench.facts.offered.contains(BlockFeature.flush),
        "the features at its beginning are 0x\(String(features, radix: 16))")
      return ""
    },
    look(
      "legacy-configuration", "legacy.pci.5 legacy.pci.6",
      "The configuration follows the legacy registers, at 20 or with MSI-X at 24, by any width.", needs: [.pciLegacy]
    ) { pci, bench in
      guard let msix = try pci.vectors() else { throw Trouble.notApplicable("there is no MSI-X") }
      let control = try pci.config(msix.at + 2, 2)
      for isOn in [true, false, true] {
        try pci.write(msix.at + 2, 2, isOn ? control | 0x8000 : control & 0x7fff)
        let at: UInt32 = isOn ? 24 : 20
        for width in [1, 2, 4] {
          let bytes = try stride(from: 0, to: 8, by: width).flatMap { place in
            let value = try pci.port.read(pci.bar(0, at + UInt32(place)), width)
            return (0..<width).map { UInt8(truncatingIfNeeded: value >> UInt64(8 * $0)) }
          }
          try expect(bytes == Array(bench.facts.configuration[0..<8]), "by \(width) bytes the capacity at \(at) is \(bytes)")
        }
      }
      try pci.write(msix.at + 2, 2, control)
      return ""
    },
    look("capability-lengths", "pci.cap.4", "Each capability is as long as its structure.") { pci, _ in
      for capability in try pci.capabilities() where capability.id == 9 {
        let least: UInt8 = capability.type == 2 || capability.type == 5 ? 20 : 16
        try expect(capability.length >= least, "the capability of cfg_type \(capability.type) has \(capability.length) bytes")
        try expect(capability.bar <= 5, "the capability of cfg_type \(capability.type) is in BAR \(capability.bar)")
      }
      return ""
    },
    look("common-structure", "pci.common.1 pci.common.2", "There is a common configuration at a multiple of 4.") { pci, _ in
      let place = try pci.structure(1, "common configuration")
      try expect(place.offset % 4 == 0, "its offset is \(place.offset)")
      return ""
    },
    look("notify-structure", "pci.notify.1", "There is a notification structure.") { pci, _ in
      _ = try pci.structure(2, "notification")
      return ""
    },
    look("isr-structure", "pci.isr.1", "There is an ISR structure.") { pci, _ in
      _ = try pci.structure(3, "ISR")
      return ""
    },
    look("device-structure", "pci.devcfg.1 pci.devcfg.2", "There is a device configuration at a multiple of 4.") { pci, _ in
      let place = try pci.structure(4, "device configuration")
      try expect(place.offset % 4 == 0, "its offset is \(place.offset)")
      return ""
    },
    look("window-structure", "pci.cfgacc.1", "There is a window in the configuration space.") { pci, _ in
      _ = try pci.structure(5, "PCI configuration access")
      return ""
    },
    look("no-shared-regions", "shm.1", "There is no shared memory region.") { pci, _ in
      try expect(try !pci.capabilities().contains { $0.id == 9 && $0.type == 8 }, "there is a shared memory capability")
      return ""
    },
    look(
      "notify-geometry", "pci.notify.2 pci.notify.3 pci.notify.4 pci.notify.5 pci.notify.6 i.pci.notifaddr.1",
      "Without NOTIFICATION_DATA: every queue's address is in the structure and aligned to 2."
    ) { pci, bench in
      if bench.facts.offered.contains(.notificationData) { throw Trouble.notApplicable("NOTIFICATION_DATA is offered") }
      return try notify(pci, bench, width: 2)
    },
    look(
      "notify-geometry-with-data", "pci.notify.7 pci.notify.8 pci.notify.9 pci.notify.10 pci.notify.11 i.pci.notifaddr.1",
      "With NOTIFICATION_DATA: every queue's address is in the structure and aligned to 4.",
      needs: [.pciModern, .offered(.notificationData)]
    ) { pci, bench in
      try notify(pci, bench, width: 4)
    },
    look("feature-words-of-pci", "pci.common.3 i.feat.len.1", "Feature words that do not exist are 0.") { pci, bench in
      let offered = bench.facts.offered.rawValue
      for (select, wanted) in [(0, offered & 0xffff_ffff), (1, offered >> 32), (2, 0), (0xffff_ffff, 0)] as [(UInt64, UInt64)] {
        try pci.setCommon(0x00, 4, select)
        let found = try pci.common(0x04, 4)
        try expect(found == wanted, "word \(select) is 0x\(String(found, radix: 16))")
      }
      return ""
    },
    look("driver-features", "pci.common.4", "The features that the driver wrote can be read.") { pci, bench in
      let choice = bench.choice(Plan()).rawValue
      for word: UInt64 in [0, 1] {
        try pci.setCommon(0x08, 4, word)
        try pci.setCommon(0x0c, 4, choice >> (32 * word) & 0xffff_ffff)
      }
      for word: UInt64 in [1, 0] {
        try pci.setCommon(0x08, 4, word)
        let found = try pci.common(0x0c, 4)
        try expect(found == choice >> (32 * word) & 0xffff_ffff, "word \(word) reads 0x\(String(found, radix: 16))")
      }
      return ""
    },
    look(
      "pci-generation", "pci.common.6", "config_generation is another one after the size changed.",
      needs: [.pciModern, .resize]
    ) { pci, bench in
      _ = try bench.transport().readConfiguration(at: 0, count: 8)
      let before = try pci.common(0x15, 1)
      guard let resize = bench.subject.resize else { throw Trouble.notApplicable("the size cannot be changed here") }
      try resize(bench.capacity * 1024)
      _ = try bench.transport().readConfiguration(at: 0, count: 8)
      let after = try pci.common(0x15, 1)
      try resize(bench.capacity * 512)
      try expect(before != after, "config_generation stayed \(before)")
      return ""
    },
    look(
      "pci-reset", "pci.common.7 pci.common.8 pci.common.9 pci.msix.8",
      "A reset by device_status: it reads 0, no queue is enabled, no vector mapped."
    ) { pci, bench in
      try bench.start()
      try pci.setCommon(0x14, 1, 0)
      try expect(try bench.eventually { try pci.common(0x14, 1) == 0 }, "device_status does not become 0")
      for queue in 0..<bench.facts.queueCount {
        try pci.selectQueue(queue)
        try expect(try pci.common(0x1c, 2) == 0, "queue \(queue) is enabled after a reset")
        let vector = try pci.common(0x1a, 2)
        try expect(vector == 0xffff, "queue \(queue) has the vector \(vector) after a reset")
      }
      let vector = try pci.common(0x10, 2)
      try expect(vector == 0xffff, "the configuration has the vector \(vector) after a reset")
      return ""
    },
    look(
      "pci-queue-reset", "pci.common.10 pci.common.11 pci.common.12 pci.common.14",
      "queue_reset takes a queue down; then it and queue_enable are 0.", needs: [.pciModern, .offered(.ringReset)]
    ) { pci, bench in
      try bench.start(Plan(adding: .ringReset, queues: 1))
      try pci.selectQueue(0)
      try expect(
        try pci.common(0x3a, 2) == 0 && pci.common(0x1c, 2) == 1,
        "queue_reset is not 0 or queue_enable not 1 of a queue that runs")
      try bench.good(bench.harmless)
      try pci.setCommon(0x3a, 2, 1)
      try expect(try bench.eventually { try pci.common(0x3a, 2) == 0 }, "queue_reset does not become 0")
      try expect(try pci.common(0x1c, 2) == 0, "queue_enable is not 0 after the queue's reset")
      try bench.transport().reset()
      try pci.selectQueue(0)
      try expect(try pci.common(0x3a, 2) == 0, "queue_reset is not 0 after a reset")
      return ""
    },
    look("pci-no-such-queue", "pci.common.15 bad.35", "A queue that does not exist has room for 0 entries.") { pci, bench in
      let count = try pci.common(0x12, 2)
      for queue in [Int(count), 0xffff] {
        try pci.selectQueue(queue)
        let size = try pci.common(0x18, 2)
        try expect(size == 0, "queue \(queue) of \(count) has room for \(size) entries")
        for field: UInt32 in [0x18, 0x1a, 0x1c, 0x3a] { try pci.setCommon(field, 2, 1) }
      }
      try bench.start(Plan(queues: 1))
      try bench.good(bench.harmless)
      return "\(count) queues"
    },
    look("pci-queue-size", "pci.common.16 i.split.size.1", "The offered ring sizes are powers of two.") { pci, bench in
      for queue in 0..<bench.facts.queueCount {
        try pci.selectQueue(queue)
        let size = try pci.common(0x18, 2)
        try expect(size > 0 && size <= 32768 && size & (size - 1) == 0, "queue \(queue) has room for \(size) entries")
      }
      return ""
    },
    look(
      "halves-of-64-bits", "pci.layout.1", "The halves of 64-bit fields can be written and read by themselves, in any order."
    ) { pci, bench in
      try bench.start(Plan(queues: 1, waits: true))
      try bench.transport().reset()
      try pci.selectQueue(0)
      for field: UInt32 in [0x20, 0x28, 0x30] {
        try pci.setCommon(field + 4, 4, 0x1234)
        try pci.setCommon(field, 4, 0x5678_9000)
        let (low, high) = (try pci.common(field, 4), try pci.common(field + 4, 4))
        try expect(
          low == 0x5678_9000 && high == 0x1234,
          "field 0x\(String(field, radix: 16)) reads 0x\(String(high, radix: 16)) and 0x\(String(low, radix: 16))")
      }
      return ""
    },
    look("window-reads", "pci.cfgacc.3", "Through the window a BAR can be read with each width.") { pci, _ in
      let (window, common) = (try pci.structure(5, "PCI configuration access"), try pci.structure(1, "common configuration"))
      for width in [1, 2, 4] {
        try pci.write(window.at + 4, 1, UInt64(common.bar))
        try pci.write(window.at + 8, 4, UInt64(common.offset + 0x12))
        try pci.write(window.at + 12, 4, UInt64(width))
        guard width <= 2 else { continue }
        let mask: UInt64 = width == 1 ? 0xff : 0xffff
        let (direct, found) = (try pci.common(0x12, width), try pci.config(window.at + 16, width) & mask)
        try expect(direct == found, "num_queues is \(direct), and \(found) through the window")
      }
      return ""
    },
    look("window-writes", "pci.cfgacc.2", "Through the window a BAR can be written.") { pci, bench in
      try bench.transport().reset()
      let (window, common) = (try pci.structure(5, "PCI configuration access"), try pci.structure(1, "common configuration"))
      try pci.write(window.at + 4, 1, UInt64(common.bar))
      try pci.write(window.at + 8, 4, UInt64(common.offset + 0x14))
      try pci.write(window.at + 12, 4, 1)
      try pci.write(window.at + 16, 1, 1)
      let status = try pci.common(0x14, 1)
      try expect(status == 1, "1 was written to device_status through the window, and it is \(status)")
      return ""
    },
    look("window-nowhere", "bad.35", "A window with an invalid BAR, an offset beyond its end, an invalid length.") {
      pci, bench in
      let window = try pci.structure(5, "PCI configuration access")
      for (bar, offset, length) in [(7, 0, 4), (4, 0xffff_fffc, 4), (4, 0, 3), (4, 0, 0xffff_ffff), (5, 0, 4)]
        as [(UInt64, UInt64, UInt64)]
      {
        try pci.write(window.at + 4, 1, bar)
        try pci.write(window.at + 8, 4, offset)
        try pci.write(window.at + 12, 4, length)
        _ = try pci.config(window.at + 16, 4)
        try pci.write(window.at + 16, 4, 0xffff_ffff)
      }
      try bench.start(Plan(queues: 1))
      try bench.good(bench.harmless)
      return ""
    },
    look("vector-count", "pci.msix.1 pci.msix.2 pci.msix.3", "There are 2 to 2048 vectors.", needs: [.pci]) { pci, _ in
      guard let msix = try pci.vectors() else { throw Trouble.notApplicable("there is no MSI-X") }
      try expect((2...2048).contains(msix.count), "there are \(msix.count) vectors")
      return "\(msix.count)"
    },
    look(
      "vectors-read-back", "pci.msix.5 pci.msix.6 pci.msix.7 pci.msix.9",
      "Every vector can be mapped to everything, and unmapped, and reads back."
    ) { pci, bench in
      guard let msix = try pci.vectors() else { throw Trouble.notApplicable("there is no MSI-X") }
      _ = try bench.transport()
      try pci.selectQueue(0)
      for vector in Array(0..<min(msix.count, 64)) + [0xffff] {
        for field: UInt32 in [0x10, 0x1a] {
          try pci.setCommon(field, 2, UInt64(vector))
          let found = try pci.common(field, 2)
          try expect(found == UInt64(vector), "vector \(vector) reads back as \(found)")
        }
      }
      return ""
    },
    look("no-such-vector", "pci.msix.10 bad.35", "A vector that does not exist reads back as none.") { pci, bench in
      guard let msix = try pci.vectors() else { throw Trouble.notApplicable("there is no MSI-X") }
      _ = try bench.transport()
      try pci.selectQueue(0)
      for field: UInt32 in [0x10, 0x1a] {
        try pci.setCommon(field, 2, UInt64(msix.count))
        let found = try pci.common(field, 2)
        try expect(found == 0xffff, "vector \(msix.count) of \(msix.count) reads back as \(found)")
      }
      return ""
    },
    look(
      "isr-of-queues", "pci.isr.3 pci.isr.4 pci.isr.5",
      "Without MSI-X a used buffer sets bit 0 of ISR and the status bit; reading clears both."
    ) { pci, bench in
      try bench.withoutVectors(pci) {
        try bench.good(bench.harmless)
        try expect(
          try bench.eventually { try pci.config(0x06, 2) & 8 != 0 }, "a buffer is used, and Interrupt Status is not set")
        let isr = try bench.isr(pci)
        try expect(isr & 1 == 1, "a buffer is used, and ISR reads \(isr)")
        let again = try bench.isr(pci)
        try expect(again == 0, "ISR reads \(again) when it was read before")
        try expect(try pci.config(0x06, 2) & 8 == 0, "Interrupt Status is set, and ISR was read")
      }
      return ""
    },
    look("isr-of-configuration", "pci.isr.2", "A change of configuration sets bit 1 of ISR.", needs: [.pciModern, .resize]) {
      pci, bench in
      guard let resize = bench.subject.resize else { throw Trouble.notApplicable("the size cannot be changed here") }
      try bench.withoutVectors(pci) {
        try resize(bench.capacity * 1024)
        var bits: UInt64 = 0
        let came = try bench.eventually {
          bits |= try bench.isr(pci)
          return bits & 2 != 0
        }
        try resize(bench.capacity * 512)
        try expect(came, "the size changed, and bit 1 of ISR is not set")
      }
      return ""
    },
    look("unmapped-is-silent", "pci.intr.1", "With MSI-X on, a queue without a vector interrupts nobody.") { pci, bench in
      guard try pci.vectors() != nil else { throw Trouble.notApplicable("there is no MSI-X") }
      try bench.start(Plan(queues: 1))
      try pci.selectQueue(0)
      try pci.setCommon(0x1a, 2, 0xffff)
      let pending = try pci.config(0x06, 2) & 8
      try bench.good(bench.harmless)
      bench.settle()
      try expect(try pci.config(0x06, 2) & 8 == pending, "Interrupt Status was set for a queue without a vector")
      return ""
    },
    look(
      "unmapped-configuration-is-silent", "pci.intr.3",
      "With MSI-X on, a change of configuration without a vector interrupts nobody.", needs: [.pciModern, .resize]
    ) { pci, bench in
      guard try pci.vectors() != nil else { throw Trouble.notApplicable("there is no MSI-X") }
      guard let resize = bench.subject.resize else { throw Trouble.notApplicable("the size cannot be changed here") }
      try bench.start(Plan(queues: 1))
      try pci.setCommon(0x10, 2, 0xffff)
      let pending = try pci.config(0x06, 2) & 8
      try resize(bench.capacity * 1024)
      bench.settle()
      let after = try pci.config(0x06, 2) & 8
      try resize(bench.capacity * 512)
      try expect(after == pending, "Interrupt Status was set for a change of configuration without a vector")
      return ""
    },
    look("kick-by-register", "i.pci.kick.1", "A queue is kicked by writing its number to its address.") { pci, bench in
      try bench.start()
      let notify = try pci.structure(2, "notification")
      let multiplier = UInt32(try pci.config(notify.at + 16, 4))
      for queue in bench.hands.indices {
        try pci.selectQueue(queue)
        let place = UInt32(try pci.common(0x1e, 2)) * multiplier
        var posted = try bench.make(bench.harmless)
        bench.post(&posted, on: queue, kicks: false)
        try pci.port.write(pci.bar(notify.bar, notify.offset + place), 2, UInt64(queue))
        try expect(try bench.answer(posted, on: queue).isOK, "the request on queue \(queue) failed")
      }
      return ""
    },
  ]

  private static func notify(_ pci: PCIWindow, _ bench: Bench, width: UInt32) throws -> String {
    let notify = try pci.structure(2, "notification")
    let multiplier = UInt32(try pci.config(notify.at + 16, 4))
    try expect(notify.offset % width == 0, "its offset is \(notify.offset)")
    try expect(
      multiplier == 0 || multiplier & (multiplier - 1) == 0 && multiplier % width == 0, "the multiplier is \(multiplier)")
    try expect(notify.size >= width, "it has \(notify.size) bytes")
    for queue in 0..<Int(try pci.common(0x12, 2)) {
      try pci.selectQueue(queue)
      let end = UInt32(try pci.common(0x1e, 2)) * multiplier + width
      try expect(notify.size >= end, "queue \(queue) needs \(end) bytes, and there are \(notify.size)")
    }
    return "\(notify.size) bytes, multiplier \(multiplier)"
  }
}

extension Bench {
  fileprivate func isr(_ pci: PCIWindow) throws -> UInt64 {
    let place = try pci.structure(3, "ISR")
    return try pci.port.read(pci.bar(place.bar, place.offset), 1)
  }

  /// Brings the device up and turns MSI-X off.
  fileprivate func withoutVectors(_ pci: PCIWindow, _ body: () throws -> Void) throws {
    try start(Plan(queues: 1))
    let msix = try pci.vectors()
    let control = try msix.map { try pci.config($0.at + 2, 2) } ?? 0
    if let msix { try pci.write(msix.at + 2, 2, control & 0x7fff) }
    _ = try isr(pci)
    try body()
    if let msix { try pci.write(msix.at + 2, 2, control) }
  }
}
