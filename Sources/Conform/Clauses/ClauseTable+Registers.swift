/// Rules of virtio-mmio, virtio-pci and the legacy interfaces: id, where it applies, level, section, and what it asks for, in our own words.

extension ClauseTable {
  static let registers = """
    legacy.feat.1|legacy|MUST|2.2.3|A transitional device recognises a legacy driver by the fact that VERSION_1 was not \
    acknowledged.
    legacy.feat.2|legacy|MAY|2.2.3|Supporting the legacy interface at all is voluntary.
    legacy.feat.3|legacy|MUST|2.2.3|Once a transitional device is driven through the legacy interface it follows the rules \
    of the Legacy Interface sections.
    legacy.vq.1|legacy|MUST|2.6.2|With the legacy interface all ring parts are located through the single contiguous \
    desc/avail/pad/used layout with Queue Align padding.
    legacy.vq.2|legacy|MUST|2.6.3|With the legacy interface ring fields use the guest's native byte order.
    legacy.init.1|legacy|MUST|3.1.2|A transitional device on the legacy interface accepts configuration writes that arrive \
    before feature negotiation.
    legacy.init.2|legacy|MUST|3.1.2|A transitional device on the legacy interface tolerates the driver using it before \
    DRIVER_OK.
    pci.bus.1|pci|MUST|4.1.1|The function behaves as required by the PCI / PCI Express specification it claims.
    pci.id.1|pci|MAY|4.1.2|A transitional device ID from 0x1000-0x103f can be used where the device type has one.
    pci.id.2|pci|MUST|4.1.2.1|Vendor ID is 0x1AF4.
    pci.id.3|pci|MUST|4.1.2.1|Device ID is 0x1040 + virtio device ID, or the listed transitional ID (blk: 0x1042 or \
    0x1001).
    pci.id.4|pci|MAY|4.1.2.1|Subsystem vendor and device IDs can describe the surrounding environment.
    pci.id.5|pci|SHOULD|4.1.2.1|A non-transitional device uses an ID within 0x1040-0x107f.
    pci.id.6|pci|SHOULD|4.1.2.1|A non-transitional device has PCI revision >= 1.
    pci.id.7|pci|SHOULD|4.1.2.1|A non-transitional device has a subsystem device ID >= 0x40.
    legacy.pci.1|legacy|MUST|4.1.2.3|A transitional device has PCI revision 0.
    legacy.pci.2|legacy|MUST|4.1.2.3|A transitional device carries the virtio device ID in the subsystem device ID.
    legacy.pci.3|legacy|MUST|4.1.2.3|A transitional device uses its transitional PCI device ID (0x1000-0x103f).
    pci.layout.1|pci|MUST|4.1.3.2|Each 32-bit half of a 64-bit configuration field can be accessed on its own.
    pci.cap.1|pci|MAY|4.1.4|cap_len can cover padding and fields the driver does not use.
    pci.cap.2|pci|MAY|4.1.4|Several structures of one type can be offered.
    pci.cap.3|pci|MAY|4.1.4|The length field can cover padding, unused fields or future extensions.
    pci.cap.4|pci|MUST|4.1.4.2|cap_len counts everything from cap_vndr to the end of any trailing extra data.
    pci.cap.5|pci|MAY|4.1.4.2|Extra data or padding can follow beyond that.
    pci.cap.6|pci|SHOULD|4.1.4.2|Multiple structures of one type are listed best first.
    pci.common.1|pci|MUST|4.1.4.3.1|The common-config offset is a multiple of 4.
    pci.common.2|pci|MUST|4.1.4.3.1|At least one common-config capability exists.
    pci.common.3|pci|MUST|4.1.4.3.1|device_feature shows offered bits [32*sel, 32*sel+31] for every selector value, hence \
    zero for unused selectors.
    pci.common.4|pci|MUST|4.1.4.3.1|driver_feature reads back the valid bits the driver wrote for the current selector.
    pci.common.5|pci|MAY|4.1.4.3.1|Invalid bits written by the driver may also read back.
    pci.common.6|pci|MUST|4.1.4.3.1|config_generation differs after the driver reads a config value that changed since any \
    part of the config was last read.
    pci.common.7|pci|MUST|4.1.4.3.1|Writing 0 to device_status resets the device.
    pci.common.8|pci|MUST|4.1.4.3.1|device_status reads 0 once that reset is finished.
    pci.common.9|pci|MUST|4.1.4.3.1|queue_enable reads 0 after reset.
    pci.common.10|pci|MUST|4.1.4.3.1|With RING_RESET negotiated queue_reset reads 0 after reset.
    pci.common.11|pci|MUST|4.1.4.3.1|With RING_RESET negotiated queue_reset reads 0 once the queue is enabled.
    pci.common.12|pci|MUST|4.1.4.3.1|Writing 1 to queue_reset resets the selected queue.
    pci.common.13|pci|MUST|4.1.4.3.1|queue_reset keeps reading 1 while the queue reset is still running.
    pci.common.14|pci|MUST|4.1.4.3.1|When the queue reset completes both queue_reset and queue_enable read 0.
    pci.common.15|pci|MUST|4.1.4.3.1|queue_size reads 0 for a queue index that is not available.
    pci.common.16|pci|MUST|4.1.4.3.1|Without RING_PACKED the presented queue_size is 0 or a power of two.
    pci.common.17|pci|MUST|4.1.4.3.1|With ADMIN_VQ negotiated admin_queue_index >= num_queues.
    pci.common.18|pci|MUST|4.1.4.3.1|With ADMIN_VQ negotiated admin_queue_num <= 0x10000 - admin_queue_index.
    pci.notify.1|pci|MUST|4.1.4.4.1|At least one notification capability exists.
    pci.notify.2|pci|MUST|4.1.4.4.1|Without NOTIFICATION_DATA offered: cap.offset is 2-byte aligned.
    pci.notify.3|pci|MUST|4.1.4.4.1|Without NOTIFICATION_DATA offered: notify_off_multiplier is an even power of two, or \
    zero.
    pci.notify.4|pci|MUST|4.1.4.4.1|Without NOTIFICATION_DATA offered: cap.length is at least 2.
    pci.notify.5|pci|MUST|4.1.4.4.1|Without NOTIFICATION_DATA offered: cap.length covers the notify offsets of every queue \
    in every configuration.
    pci.notify.6|pci|MUST|4.1.4.4.1|Without NOTIFICATION_DATA offered: cap.length >= queue_notify_off * multiplier + 2 for \
    every queue.
    pci.notify.7|pci|MUST|4.1.4.4.1|With NOTIFICATION_DATA offered: multiplier is a power of two that is a multiple of 4, \
    or zero.
    pci.notify.8|pci|MUST|4.1.4.4.1|With NOTIFICATION_DATA offered: cap.offset is 4-byte aligned.
    pci.notify.9|pci|MUST|4.1.4.4.1|With NOTIFICATION_DATA offered: cap.length is at least 4.
    pci.notify.10|pci|MUST|4.1.4.4.1|With NOTIFICATION_DATA offered: cap.length covers the notify offsets of every queue \
    in every configuration.
    pci.notify.11|pci|MUST|4.1.4.4.1|With NOTIFICATION_DATA offered: cap.length >= queue_notify_off * multiplier + 4 for \
    every queue.
    pci.isr.1|pci|MUST|4.1.4.5.1|At least one ISR capability exists.
    pci.isr.2|pci|MUST|4.1.4.5.1|The config-change ISR bit (bit 1) is set before a config-change notification goes out.
    pci.isr.3|pci|MUST|4.1.4.5.1|With MSI-X disabled the queue ISR bit (bit 0) is set before a virtqueue notification goes \
    out.
    pci.isr.4|pci|MUST|4.1.4.5.1|With MSI-X disabled the PCI Status register Interrupt Status bit mirrors the OR of the \
    ISR bits.
    pci.isr.5|pci|MUST|4.1.4.5.1|Reading ISR clears it.
    pci.devcfg.1|pci|MUST|4.1.4.6|A device type with device-specific configuration exposes at least one DEVICE_CFG \
    capability.
    pci.devcfg.2|pci|MUST|4.1.4.6.1|The device-specific config offset is a multiple of 4.
    pci.shm.1|pci|MUST|4.1.4.7.1|A shared-memory region lies entirely inside its BAR.
    pci.shm.2|pci|MUST|4.1.4.7.1|Shared-memory capability ids are unique per device.
    pci.vndr.1|pci|MUST NOT|4.1.4.8|Reading the vendor-data capability changes nothing.
    pci.vndr.2|pci|MAY|4.1.4.8.1|vendor_id can differ from the PCI vendor and subsystem vendor IDs.
    pci.vndr.3|pci|MAY|4.1.4.8.1|Several vendor-data capabilities can coexist, with equal or different vendor ids.
    pci.vndr.4|pci|MUST NOT|4.1.4.8.1|vendor_id in vendor data is not 0x1AF4.
    pci.vndr.5|pci|MUST|4.1.4.8.1|Vendor-data capability size is a multiple of 4.
    pci.vndr.6|pci|MUST NOT|4.1.4.8.1|Driver reads of vendor data have no side effects (repeat of pci.vndr.1 inside the \
    requirements block).
    pci.cfgacc.1|pci|MUST|4.1.4.7.1|At least one PCI_CFG access capability exists.
    pci.cfgacc.2|pci|MUST|4.1.4.7.1|A write to pci_cfg_data performs a BAR write of cap.length bytes at \
    cap.bar/cap.offset.
    pci.cfgacc.3|pci|MUST|4.1.4.7.1|A read of pci_cfg_data performs the corresponding BAR read and returns its first \
    cap.length bytes.
    legacy.pci.4|legacy|MUST|4.1.4.8|A transitional device also exposes the legacy register block at the start of the I/O \
    region in BAR0.
    legacy.pci.5|legacy|MUST|4.1.4.8|Legacy device-config reads of any width give the same bytes as natural-width reads.
    legacy.pci.6|legacy|MUST|4.1.4.8|Legacy device-specific config follows immediately after the legacy header (offset 20, \
    or 24 with MSI-X enabled).
    legacy.pci.7|legacy|MUST|4.1.4.8|On the legacy interface feature bits 32-63 count as not acknowledged.
    pci.nontrans.1|pci|SHOULD|4.1.4.9.0.1|To fend off a known colliding legacy driver a non-transitional device presents \
    an I/O BAR0.
    pci.nontrans.2|pci|SHOULD|4.1.4.9.0.1|It answers a one-byte zero write at BAR0 offset 18 by showing zeroes on all BARs \
    and ignoring writes.
    legacy.pci.8|legacy|MUST|4.1.5.1.1.1|The legacy register interface of a transitional device sits behind an I/O-type \
    BAR0.
    pci.msix.1|pci|SHOULD|4.1.5.1.2.1|An MSI-X capable device supports at least 2 vectors.
    pci.msix.2|pci|SHOULD|4.1.5.1.2.1|An MSI-X capable device supports at most 0x800 vectors.
    pci.msix.3|pci|MUST|4.1.5.1.2.1|The number of vectors is reported through the MSI-X Table Size field.
    pci.msix.4|pci|SHOULD|4.1.5.1.2.1|Table Size is kept to what helps performance.
    pci.msix.5|pci|MUST|4.1.5.1.2.1|Every event type can be mapped to every valid vector.
    pci.msix.6|pci|MUST|4.1.5.1.2.1|Every event type can be unmapped.
    pci.msix.7|pci|MUST|4.1.5.1.2.1|Vector fields read back the current mapping, or NO_VECTOR (0xffff) if none.
    pci.msix.8|pci|MUST|4.1.5.1.2.1|After reset no event is mapped.
    pci.msix.9|pci|SHOULD NOT|4.1.5.1.2.1|A mapping is refused only when it truly cannot be satisfied.
    pci.msix.10|pci|MUST|4.1.5.1.2.1|A refused mapping reads back as NO_VECTOR.
    pci.intr.1|pci|MUST NOT|4.1.5.3.1|With MSI-X on and a queue unmapped, no interrupt is delivered for that queue.
    pci.intr.2|pci|MAY|4.1.5.4|One interrupt can stand for both used buffers and a configuration change.
    pci.intr.3|pci|MUST NOT|4.1.5.4.1|With MSI-X on and config_msix_vector unmapped, no interrupt is delivered for \
    configuration changes.
    mmio.1|mmio|MUST|4.2.2.1|MagicValue reads 0x74726976.
    mmio.2|mmio|MUST|4.2.2.1|Version reads 2.
    mmio.3|mmio|MUST|4.2.2.1|An event's InterruptStatus bit is set from the moment it occurs until the driver acknowledges \
    that bit in InterruptACK.
    mmio.4|mmio|MUST|4.2.2.1|InterruptStatus bits for events that did not occur read 0.
    mmio.5|mmio|MUST|4.2.2.1|Reset clears every InterruptStatus bit.
    mmio.6|mmio|MUST|4.2.2.1|Reset clears QueueReady of every queue.
    mmio.7|mmio|MUST|4.2.2.1|ConfigGeneration changes whenever the driver could otherwise see a torn configuration.
    mmio.8|mmio|MUST NOT|4.2.2.1|Ring memory is not touched while QueueReady is 0.
    mmio.9|mmio|MUST|4.2.2.1|With RING_RESET negotiated QueueReset reads 0 after reset.
    mmio.10|mmio|MUST|4.2.2.1|With RING_RESET negotiated QueueReset reads 0 once the queue was enabled through QueueReady.
    mmio.11|mmio|MUST|4.2.2.1|Writing 1 to QueueReset resets the selected queue.
    mmio.12|mmio|MUST|4.2.2.1|QueueReset keeps reading 1 while the queue reset is running.
    mmio.13|mmio|MUST|4.2.2.1|When the queue reset completes QueueReset and QueueReady both read 0.
    legacy.blk.1|legacy|MUST|5.2.4.1|On the legacy interface virtio_blk_config fields are in guest-native byte order.
    legacy.blk.2|legacy|MUST|5.2.5.3|On the legacy interface a transitional device adapts its cache-mode negotiation as \
    listed in the next two rows.
    legacy.blk.3|legacy|MUST NOT|5.2.5.3|A status write alone does not change the cache mode/writeback, except when \
    DRIVER_OK is set without CONFIG_WCE acked.
    legacy.blk.4|legacy|MUST NOT|5.2.5.3|Writing driver feature bits does not change the cache mode/writeback.
    legacy.blk.5|legacy|MUST|5.2.6.3|On the legacy interface virtio_blk_req fields are in guest-native byte order.
    legacy.blk.6|legacy|MUST|5.2.6.3|Type 5 (FLUSH_OUT) is handled as type 4 (FLUSH); the text says driver but only a \
    device can obey it.
    legacy.blk.7|legacy|SHOULD|5.2.6.3|With BARRIER (bit 0) offered, earlier requests finish before a request whose type \
    has bit 31 set.
    legacy.blk.8|legacy|SHOULD NOT|5.2.6.3|With BARRIER offered, later requests do not start until the barrier request is \
    done.
    rfb.8|pci|SHOULD|6.2|Add-in-card PCI devices offer both ACCESS_PLATFORM and ORDER_PLATFORM.
    rfb.9|pci|SHOULD|6.2|A PCI device with an SR-IOV capability offers SR_IOV (bit 37).
    legacy.rfb.1|legacy|MAY|6.3|A transitional device can offer NOTIFY_ON_EMPTY (bit 24).
    legacy.rfb.2|legacy|MUST|6.3|With NOTIFY_ON_EMPTY negotiated a notification is sent when the queue runs out of \
    available descriptors, suppression notwithstanding.
    legacy.rfb.3|legacy|MUST|6.3|A transitional device offers ANY_LAYOUT (bit 27).
    legacy.rfb.4|legacy|SHOULD NOT|6.3|Bit 30 is not negotiated (it sits in the must-offer list yet is marked \
    do-not-negotiate; vhost-user reuses it).
    i.mmio.reset.1|mmio|IMPLIED|4.2.2|Writing 0 to Status resets the device.
    i.mmio.feat.1|mmio|IMPLIED|4.2.2|DeviceFeatures shows word DeviceFeaturesSel; unknown words read 0.
    i.mmio.queue.1|mmio|IMPLIED|4.2.2|QueueNumMax reads 0 for a queue that does not exist.
    i.mmio.queue.2|mmio|IMPLIED|4.2.2|QueueReady reads back the last value written for the selected queue.
    i.mmio.intr.1|mmio|IMPLIED|4.2.3.4|The interrupt line is asserted exactly while any InterruptStatus bit is set (level \
    semantics).
    i.mmio.shm.1|mmio|IMPLIED|4.2.2|SHMLen and SHMBase read all-ones for a region that does not exist.
    i.mmio.cfg.1|mmio|IMPLIED|4.2.2|Config space starts at 0x100 and allows byte access.
    i.mmio.adminvq.1|mmio|IMPLIED|4.2.5|ADMIN_VQ is not available on MMIO.
    i.legacy.mmio.1|legacy|IMPLIED|4.2.4|Legacy MMIO: Version 1, page-number based queue address, GuestPageSize, \
    QueueAlign; no QueueReady, address pairs or ConfigGeneration.
    i.legacy.mmio.2|legacy|IMPLIED|4.2.4|Reset zeroes QueuePFN of all queues.
    i.pci.notifaddr.1|pci|IMPLIED|4.1.4.4|Notify address = BAR + cap.offset + queue_notify_off * notify_off_multiplier; \
    multiplier 0 means one shared address.
    i.pci.kick.1|pci|IMPLIED|4.1.5.2|With a shared notify address the written 16-bit index tells queues apart.
    """
}
