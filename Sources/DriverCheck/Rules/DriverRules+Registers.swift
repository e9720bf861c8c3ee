/// virtio-pci, virtio-mmio and the legacy interface.
/// One line for each rule: name, area, level, section, words, and "=" with where it is seen or "-" with why not.

extension DriverRules {
  static let registers = """
    legacy.d.feat.1|legacy|MUST|2.2.3|A transitional driver treats the absence of VERSION_1 in the offer as a legacy \
    device.|-this device offers VERSION_1 wherever the interface has a bit for it
    legacy.d.cfg.1|legacy|SHOULD|2.4.4|Without a generation counter, config is re-read until two passes agree.|=L
    legacy.d.vq.1|legacy|MUST|2.6.2|Queue size is read from the device (legacy PCI offers no way to change it; legacy \
    MMIO has a QueueNum register).|=L
    legacy.d.vq.2|legacy|MUST|2.6.2|The whole ring is one allocation of the size given by the legacy formula.|-the \
    device is told where the region begins and computes the rest: another layout shows as a corrupt ring
    legacy.d.vq.3|legacy|MUST|2.6.2|Parts are located with the legacy layout structure and Queue Align padding.|-the \
    device is told where the region begins and computes the rest: another layout shows as a corrupt ring
    legacy.d.vq.4|legacy|MUST|2.6.3|Ring fields are in guest-native byte order on the legacy interface.|-a driver \
    cannot run in another byte order than that of this CPU
    legacy.d.init.1|legacy|MUST|3.1.2|On the legacy interface the FEATURES_OK write and re-read are left out.|=L
    d.pci.cap.1|pci|MUST|4.1.4.1|Vendor capabilities with a reserved cfg_type are skipped.|-it concerns what the driver \
    does with what it reads, which the device does not see
    d.pci.cap.2|pci|SHOULD|4.1.4.1|The first supported instance of a type is the one used.|-it concerns what the driver \
    does with what it reads, which the device does not see
    d.pci.cap.3|pci|MUST|4.1.4.1|A cap_len above the documented minimum is fine.|-it concerns what the driver does with \
    what it reads, which the device does not see
    d.pci.cap.4|pci|MUST|4.1.4.1|Capabilities with a reserved bar number (>5) are skipped.|-it concerns what the driver \
    does with what it reads, which the device does not see
    d.pci.cap.5|pci|SHOULD|4.1.4.1|Only the part of a structure needed is mapped.|-it concerns what the driver does \
    with what it reads, which the device does not see
    d.pci.cap.6|pci|MUST|4.1.4.1|A surprisingly large length is handled.|-it concerns what the driver does with what it \
    reads, which the device does not see
    d.pci.cap.7|pci|MAY|4.1.4.1|length may be checked against the needed minimum.|-it leaves the driver free to do either
    d.pci.cap.8|pci|MUST NOT|4.1.4.1|Capability fields are read-only to the driver, apart from the PCI_CFG window.|=P
    d.pci.common.1|pci|MUST NOT|4.1.4.3.2|Read-only common-config fields (device_feature, num_queues, config_generation, \
    queue_notify_off and from v1.2 queue_notify_data) are not written.|=P
    d.pci.common.2|pci|MUST NOT|4.1.4.3.2|With RING_PACKED queue_size is never set to 0.|=P
    d.pci.common.3|pci|MUST NOT|4.1.4.3.2|Without RING_PACKED queue_size is never set to a non-power of two.|=P
    d.pci.common.4|pci|MUST|4.1.4.3.2|All other queue fields are programmed before queue_enable.|=P
    d.pci.common.5|pci|MUST|4.1.4.3.2|After writing 0 to device_status the driver waits for it to read 0 before \
    re-initialising.|=P
    d.pci.common.6|pci|MUST NOT|4.1.4.3.2|queue_enable is never written 0.|=P
    d.pci.common.7|pci|MUST NOT|4.1.4.3.2|With RING_RESET a queue reset started by writing 1 to queue_reset is not taken \
    as finished before that field reads 0.|=P
    d.pci.common.8|pci|MAY|4.1.4.3.2|After that the queue may be enabled again once its other fields are programmed.|-it \
    leaves the driver free to do either
    d.pci.common.9|pci|MAY|4.1.4.3.2|Other parameters than before the queue reset may be chosen.|-it leaves the driver \
    free to do either
    d.pci.common.10|pci|MUST|4.1.4.3.2|With ADMIN_VQ, admin queues use indexes from admin_queue_index up to \
    admin_queue_index+admin_queue_num-1.|-only with ADMIN_VQ, which this device does not offer
    d.pci.common.11|pci|MAY|4.1.4.3.2|With ADMIN_VQ, not all admin queues need to be configured.|-only with ADMIN_VQ, \
    which this device does not offer
    d.pci.kick.1|pci|MUST|4.1.5.2.1|Without NOTIFICATION_DATA a kick is a 16-bit write.|=P
    d.pci.kick.2|pci|MUST|4.1.5.2.1|With NOTIFICATION_DATA a kick is a 32-bit write.|=P
    d.pci.kick.3|pci|MUST|4.1.5.2.1|With neither NOTIFICATION_DATA nor NOTIF_CONFIG_DATA the value is the queue index.|=P
    d.pci.kick.4|pci|MUST|4.1.5.2.1|With NOTIFICATION_DATA only, the low 16 bits are the queue index.|=P
    d.pci.kick.5|pci|MUST|4.1.5.2.1|With NOTIF_CONFIG_DATA only, the value is queue_notify_data (queue_notif_config_data) \
    of that queue.|=P
    d.pci.kick.6|pci|MUST|4.1.5.2.1|With both features the low 16 bits are that field.|=P
    d.pci.id.1|pci|MUST|4.1.2.2|Matching uses vendor 0x1AF4 and device 0x1040 + virtio device ID.|-it concerns what the \
    driver does with what it reads, which the device does not see
    d.pci.id.2|pci|MUST|4.1.2.2|Types with a transitional ID are matched under that ID too.|-it concerns what the \
    driver does with what it reads, which the device does not see
    d.pci.id.3|pci|MUST|4.1.2.2|Any revision ID is matched.|-it concerns what the driver does with what it reads, which \
    the device does not see
    d.pci.id.4|pci|MAY|4.1.2.2|Any subsystem IDs may be matched.|-it leaves the driver free to do either
    d.pci.layout.1|pci|MUST|4.1.3.1|Config accesses use the width of the field, aligned; 64-bit fields as 32-bit \
    accesses.|=P
    d.pci.layout.2|pci|MAY|4.1.3.1|The halves of a 64-bit field may be accessed independently.|-it leaves the driver free \
    to do either
    d.pci.vndr.1|pci|SHOULD NOT|4.1.4.8.2|Vendor data serves debugging and reporting only.|-this device has no vendor data
    d.pci.vndr.2|pci|MUST|4.1.4.8.2|vendor_id is checked before vendor data is interpreted or written.|-this device has \
    no vendor data
    d.pci.cfgacc.1|pci|MUST NOT|4.1.4.7.2|The window offset is always a multiple of the window length.|=P
    d.pci.cfgacc.2|pci|MUST|4.1.4.7.2|Hence all window accesses are aligned.|=P
    d.pci.cfgacc.3|pci|MUST NOT|4.1.4.7.2|pci_cfg_data is touched only while bar/offset/length lie inside a region named \
    by another virtio capability.|=P
    d.pci.isr.1|pci|SHOULD NOT|4.1.4.5.2|With MSI-X enabled ISR is not read for queue interrupts.|=P
    d.pci.msix.1|pci|MUST|4.1.5.1.2.2|Any table size from 0 to 0x7FF is supported.|-it concerns what the driver does \
    with what it reads, which the device does not see
    d.pci.msix.2|pci|MAY|4.1.5.1.2.2|With a single vector the driver can fall back to INTx.|-it leaves the driver free to \
    do either
    d.pci.msix.3|pci|MAY|4.1.5.1.2.2|Table size may be read as a hint.|-it leaves the driver free to do either
    d.pci.msix.4|pci|MUST NOT|4.1.5.1.2.2|No vector beyond the table is ever requested.|=P
    d.pci.msix.5|pci|MUST|4.1.5.1.2.2|Each mapping is verified by reading it back.|=P
    d.pci.msix.6|pci|MAY|4.1.5.1.2.2|On failure the driver may retry with fewer vectors, turn MSI-X off, or give up.|-it \
    leaves the driver free to do either
    d.pci.cfgchg.1|pci|MUST|4.1.5.4.2|One interrupt may mean config change and used buffers at once; both are \
    checked.|-it concerns what the driver does with what it reads, which the device does not see
    d.mmio.1|mmio|MUST NOT|4.2.2.2|Undocumented offsets are not accessed.|=M
    d.mmio.2|mmio|MUST NOT|4.2.2.2|Read-only registers are not written.|=M
    d.mmio.3|mmio|MUST NOT|4.2.2.2|Write-only registers are not read.|=M
    d.mmio.4|mmio|MUST|4.2.2.2|Control registers (below 0x100) are accessed with aligned 32-bit operations only.|=M
    d.mmio.5|mmio|MUST|4.2.2.2|Device config is accessed with 8-, 16- or 32-bit aligned operations matching the field \
    width.|=M
    d.mmio.6|mmio|MUST|4.2.2.2|A device with the wrong magic is ignored.|-this device's magic value is never wrong
    d.mmio.7|mmio|MAY|4.2.2.2|That may be reported as an error.|-it leaves the driver free to do either
    d.mmio.8|mmio|MUST|4.2.2.2|A device whose Version is not 2 is ignored.|-this device's version is never wrong
    d.mmio.9|mmio|MAY|4.2.2.2|That may be reported as an error.|-it leaves the driver free to do either
    d.mmio.10|mmio|MUST|4.2.2.2|A device with DeviceID 0 is ignored.|-this device's ID is never 0
    d.mmio.11|mmio|MUST NOT|4.2.2.2|That is not reported as an error.|-this device's ID is never 0
    d.mmio.12|mmio|MUST|4.2.2.2|DeviceFeaturesSel is written before DeviceFeatures is read.|=M
    d.mmio.13|mmio|MUST|4.2.2.2|DriverFeaturesSel is written before DriverFeatures is written.|=M
    d.mmio.14|mmio|MUST|4.2.2.2|QueueNum never exceeds QueueNumMax.|=M
    d.mmio.15|mmio|MUST NOT|4.2.2.2|With QueueReady non-zero QueueNum and the six address registers are left alone.|=M
    d.mmio.16|mmio|MUST|4.2.2.2|To stop a queue 0 is written to QueueReady.|-there is no other way to stop a queue; \
    changes without it are checked as d.mmio.15
    d.mmio.17|mmio|MUST|4.2.2.2|QueueReady is read back afterwards for synchronisation.|=M
    d.mmio.18|mmio|MUST|4.2.2.2|Undefined InterruptStatus bits are ignored.|-it concerns what the driver does with what \
    it reads, which the device does not see
    d.mmio.19|mmio|MUST|4.2.2.2|Handled events are written to InterruptACK.|-a driver may read what is pending as often \
    as it likes, and the device is not told when an event has been handled
    d.mmio.20|mmio|MUST NOT|4.2.2.2|Undefined InterruptACK bits are not set.|=M
    d.mmio.21|mmio|MUST NOT|4.2.2.2|With RING_RESET a queue reset is not taken as finished before QueueReset reads 0.|=M
    d.mmio.22|mmio|MAY|4.2.2.2|After that the queue may be enabled again once its registers are programmed.|-it leaves \
    the driver free to do either
    d.mmio.23|mmio|MAY|4.2.2.2|Other parameters than before may be chosen.|-it leaves the driver free to do either
    d.mmio.init.1|mmio|MUST|4.2.3.1.1|MagicValue and Version are checked first.|=M
    d.mmio.init.2|mmio|MUST|4.2.3.1.1|With good values DeviceID is read next.|=M
    d.mmio.init.3|mmio|MUST|4.2.3.1.1|DeviceID 0 aborts the bring-up.|-this device's ID is never 0
    d.mmio.init.4|mmio|MUST NOT|4.2.3.1.1|In that case no other register is accessed.|-this device's ID is never 0
    d.mmio.init.5|mmio|MUST|4.2.3.1.1|Otherwise the generic init sequence (3.1) is followed.|-the sequence is checked as \
    d.init.1
    d.mmio.init.6|mmio|MUST NOT|4.2.3.1.1|Drivers not using shared memory leave the SHM registers alone.|=M
    d.mmio.intr.1|mmio|MUST|4.2.3.4.1|InterruptStatus is read on every interrupt.|=M
    d.mmio.intr.2|mmio|SHOULD|4.2.3.4.1|The used bit is taken to concern every active queue.|-it concerns what the \
    driver does with what it reads, which the device does not see
    d.mmio.intr.3|mmio|MUST|4.2.3.4.1|The handled bits are acknowledged afterwards.|-a driver may read what is pending \
    as often as it likes, and the device is not told when an event has been handled
    d.rfb.9|pci|MAY|6.1|With SR_IOV virtual functions may be enabled.|-only with SR_IOV, which this device does not offer
    d.rfb.10|pci|MUST NOT|6.1|SR_IOV is not accepted without the PCI capability.|-only with SR_IOV, which this device \
    does not offer
    d.rfb.11|pci|MUST|6.1|SR_IOV negotiation finishes before VFs are enabled.|-only with SR_IOV, which this device does \
    not offer
    d.rfb.12|pci|MAY|6.1|Once negotiated VFs may be enabled even after resets.|-only with SR_IOV, which this device does \
    not offer
    legacy.d.rfb.1|legacy|MUST|6.3|ANY_LAYOUT is accepted when offered.|=L
    """
}
