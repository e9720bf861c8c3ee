/// Why no check covers a clause.

enum Reasons {
  /// - Precondition: no check covers the clause.
  static func reason(for clause: Clause) -> String {
    if let own = own[clause.id] { return own }
    if let group = groups.first(where: { clause.id.hasPrefix($0.prefix) }) { return group.reason }
    return ""
  }

  private static let groups: [(prefix: String, reason: String)] = [
    ("pci.vndr.", "about vendor data (cfg_type 9), which no driver needs: a property of one product, to be reviewed there"),
    ("pci.shm.", "about shared memory regions, which a block device does not have (shm.1)"),
  ]

  private static let own: [String: String] = [
    "legacy.feat.2": "it leaves the device free to do either",
    "legacy.feat.3": "the clauses of the legacy interface cover it",
    "legacy.vq.2": "a driver cannot run in another byte order than that of this CPU",
    "legacy.blk.1": "a driver cannot run in another byte order than that of this CPU",
    "legacy.blk.5": "a driver cannot run in another byte order than that of this CPU",
    "legacy.blk.2": "legacy.blk.3 and legacy.blk.4 cover it",
    "legacy.blk.7":
      "about the order in which requests are executed, which a driver cannot see; only with BARRIER, which no device offers",
    "legacy.blk.8":
      "about the order in which requests are executed, which a driver cannot see; only with BARRIER, which no device offers",
    "legacy.rfb.1": "it leaves the device free to do either",
    "legacy.rfb.2": "only with NOTIFY_ON_EMPTY, which no current driver accepts",
    "legacy.pci.7": "a legacy driver has 32 bits of features to write: there is nothing to see",
    "legacy.init.2":
      "it concerns drivers older than the specification; what is in the ring before DRIVER_OK is served at the latest then",
    "split.desc.2": "a driver cannot see what is read: an audit of the code",
    "split.desc.3": "it leaves the device free to do either",
    "packed.desc.2": "a driver cannot see what is read: an audit of the code",
    "split.used.3": "it leaves the device free to do either",
    "packed.order.1": "a driver cannot see in which order chains are begun",
    "packed.order.3": "it leaves the device free to do either",
    "i.packed.event.3": "only a driver that reads between two stores of the device could see it: an audit of the code",
    "pci.bus.1": "the whole of another specification; what a kernel's parser reads is checked with the structures",
    "pci.id.1": "it leaves the device free to do either",
    "pci.id.4": "it leaves the device free to do either",
    "pci.cap.1": "it leaves the device free to do either",
    "pci.cap.2": "it leaves the device free to do either",
    "pci.cap.3": "it leaves the device free to do either",
    "pci.cap.5": "it leaves the device free to do either",
    "pci.cap.6": "only the device knows what is best",
    "pci.common.5": "it leaves the device free to do either",
    "pci.common.13": "a queue's reset is over before its register can be read here: the mailbox answers when it is",
    "pci.common.17": "about an administration virtqueue, which a block device does not have",
    "pci.common.18": "about an administration virtqueue, which a block device does not have",
    "pci.nontrans.1": "for devices that a very old driver would take for its own, which block devices are not",
    "pci.nontrans.2": "for devices that a very old driver would take for its own, which block devices are not",
    "pci.msix.4": "only the device knows what helps",
    "pci.intr.2": "it leaves the device free to do either",
    "mmio.12": "a queue's reset is over before its register can be read here: the mailbox answers when it is",
    "blk.op.9": "it leaves the device free to do either",
    "blk.op.11": "a driver cannot see whether WRITE_ZEROES ever deallocates",
    "blk.op.12": "it leaves the device free to do either",
    "blk.op.13": "no device that changes write_zeroes_may_unmap was available to test a check against",
    "blk.op.14":
      "a driver cannot see when bytes are on stable storage: 'vmm-blk verify-crash' checks it for this program's engines",
    "blk.op.15":
      "a driver cannot see when bytes are on stable storage: 'vmm-blk verify-crash' checks it for this program's engines",
    "blk.op.16":
      "a driver cannot see when bytes are on stable storage: 'vmm-blk verify-crash' checks it for this program's engines",
    "blk.op.17": "it leaves the device free to do either",
    "blk.op.18": "about storage that has such metrics, which a driver cannot know",
    "rfb.3": "whether a platform translates or limits the device's accesses is known to whoever builds it, not to a driver",
    "rfb.8": "about add-in cards",
    "rfb.9": "about functions with an SR-IOV capability",
    "i.blk.units.2": "a driver cannot see what the limits of the storage are",
    "i.blk.seg.1": "it promises nothing that could be checked",
    "zoned.init.3": "no host-aware disk was available to test a check against",
    "zoned.init.5": "no drive-managed disk was available to test a check against",
    "zoned.init.7": "no host-aware disk was available to test a check against",
    "zoned.init.14": "it leaves the device free to do either; zoned.op.13 is about those that do",
    "zoned.op.22": "no zoned disk with SECURE_ERASE was available to test a check against",
    "zoned.op.23": "the driver's duty, although it is written as the device's",
    "zoned.op.24": "no zoned disk with SECURE_ERASE was available to test a check against",
    "bad.37":
      "the file behind guest memory is the front-end's: this project's tests try it with a device in another process",
    "bad.40": "the format is set when the device is started, and no driver sees it",
    "bad.41": "a driver cannot make a medium fail: '--inject' does",
  ]

  /// For the test that no reason is stale.
  package static var ids: [String] { Array(own.keys) }
}
