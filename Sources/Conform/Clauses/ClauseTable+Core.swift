/// Rules of every device, split and packed rings: id, where it applies, level, section, and what it asks for, in our own words.

extension ClauseTable {
  static let core = """
    status.1|core|MUST|2.1.2|After any reset the status field reads back as zero (from v1.2 on this sentence lives in \
    2.4.1 instead).
    status.2|core|MUST NOT|2.1.2|No available buffer may be consumed while DRIVER_OK is still clear.
    status.3|core|MUST NOT|2.1.2|No used-buffer notification may reach the driver while DRIVER_OK is still clear.
    status.4|core|SHOULD|2.1.2|When the device falls into an error it can only leave through a reset it raises \
    DEVICE_NEEDS_RESET (bit 64).
    status.5|core|MUST|2.1.2|If DRIVER_OK is set when DEVICE_NEEDS_RESET gets raised, a configuration-change notification \
    follows.
    feat.1|core|MUST NOT|2.2.2|A feature bit that depends on another bit is never offered unless that other bit is offered \
    too.
    feat.2|core|SHOULD|2.2.2|Any self-consistent subset of the offered bits is acceptable to the device.
    feat.3|core|MUST|2.2.2|If the device refuses the subset the driver chose, FEATURES_OK does not stick when written.
    feat.4|core|MUST NOT|2.2.2|Bits the device could not honour if accepted (undefined, reserved, wrong device type or \
    wrong transport) are never offered.
    feat.5|core|SHOULD NOT|2.2.2|A feature set that was once accepted is not rejected on a later negotiation after device \
    or system reset.
    reset.1|core|MUST|2.4.1|On receiving a reset request the device brings the status field back to zero.
    reset.2|core|MUST NOT|2.4.1|After status has returned to zero no notification of any kind is sent until the driver \
    initialises the device again.
    reset.3|core|MUST NOT|2.4.1|After status has returned to zero the device leaves the queues alone until the driver \
    initialises it again.
    cfg.1|core|MUST|2.4.2|Every device-specific configuration field can be read before FEATURES_OK is set.
    cfg.2|core|MUST|2.4.2|That early readability covers feature-conditional fields as long as the gating feature is \
    offered.
    vqreset.1|core|MUST NOT|2.6.1.1.1|Requests from a queue the driver has reset are no longer executed.
    vqreset.2|core|MUST NOT|2.6.1.1.1|The driver is not notified for a queue that has been reset.
    vqreset.3|core|MUST|2.6.1.1.1|Queue reset returns all of that queue's state (including available and used positions) \
    to defaults.
    vqreset.4|core|MUST|2.6.1.2.1|On re-enable the device picks up any queue parameter the driver altered, e.g. the queue \
    size.
    split.frame.1|core|MUST NOT|2.6.4.1|How a message is cut into descriptors carries no meaning; the device may not rely \
    on a particular split.
    split.frame.2|core|MAY|2.6.4.1|A sensible cap on the number of descriptors per chain is permitted.
    split.desc.1|split|MUST NOT|2.6.5.1|Buffers not flagged WRITE are never written by the device.
    split.desc.2|split|SHOULD NOT|2.6.5.1|Buffers flagged WRITE are not read by the device.
    split.desc.3|split|MAY|2.6.5.1|Reading a device-writable buffer is tolerated for debugging or diagnosis only.
    split.desc.4|split|MUST NOT|2.6.5.1|Descriptor table entries are never modified by the device.
    split.indirect.1|split|MUST|2.6.5.3.2|The WRITE flag on a descriptor that points at an indirect table is disregarded.
    split.indirect.2|split|MUST|2.6.5.3.2|A chain made of zero or more ordinary descriptors ending in one INDIRECT \
    descriptor is handled.
    split.usednotif.1|split|MUST|2.6.7.2|Without EVENT_IDX the used_event slot has no influence.
    split.usednotif.2|split|SHOULD NOT|2.6.7.2|Without EVENT_IDX, avail.flags==1 asks for silence after a used entry is \
    written.
    split.usednotif.3|split|MUST|2.6.7.2|Without EVENT_IDX, avail.flags==0 obliges the device to notify after writing a \
    used entry.
    split.usednotif.4|split|MUST|2.6.7.2|With EVENT_IDX the low bit of avail.flags has no influence.
    split.usednotif.5|split|MUST|2.6.7.2|With EVENT_IDX a notification is mandatory when the used idx value under which an \
    entry was stored equals used_event.
    split.usednotif.6|split|SHOULD NOT|2.6.7.2|With EVENT_IDX no notification is sent for other used entries.
    split.used.1|split|MUST|2.6.8.2|An entry's len is stored before the used idx that publishes it moves.
    split.used.2|split|MUST|2.6.8.2|Before the used idx moves, at least len bytes starting from the first device-writable \
    byte have really been written.
    split.used.3|split|MAY|2.6.8.2|More bytes than len reports may have been written.
    split.availnotif.1|split|MUST|2.6.10.2|Without EVENT_IDX used.flags holds only 0 or 1.
    split.availnotif.2|split|MAY|2.6.10.2|Without EVENT_IDX the device can set used.flags=1 to say kicks are unnecessary.
    split.availnotif.3|split|MUST|2.6.10.2|With EVENT_IDX used.flags stays 0.
    split.availnotif.4|split|MAY|2.6.10.2|With EVENT_IDX avail_event can be used to defer kicks until the avail entry of \
    that index is written.
    split.availnotif.5|core|MUST|2.6.10.2|Kicks that bring nothing new are harmless.
    split.availnotif.6|split|MAY|2.6.13.4|The device is free to suppress available-buffer notifications it does not need.
    split.avail.1|split|MAY|2.6.13.3|From the moment avail idx moves the device can fetch the chains without waiting for a \
    kick.
    packed.order.1|packed|MUST|2.7.12|Processing of driver descriptors begins in ring order.
    packed.order.2|packed|MUST|2.7.12|Used descriptors start being written into successive ring positions in completion \
    order.
    packed.order.3|packed|MAY|2.7.12|Individual descriptor writes may be reordered once started.
    packed.desc.1|packed|MUST NOT|2.7.15|Buffers not flagged WRITE are never written.
    packed.desc.2|packed|SHOULD NOT|2.7.15|Buffers flagged WRITE are not read.
    packed.desc.3|packed|MUST NOT|2.7.15|A descriptor is only consumed after its AVAIL bit is seen to change (first change \
    is against the all-zero ring).
    packed.desc.4|packed|MUST NOT|2.7.15|Once the device has flipped the USED bit it does not touch that descriptor again.
    packed.sg.1|packed|MUST|2.7.18|Members of a NEXT-linked list are used in the order the driver laid them out.
    packed.sg.2|packed|MAY|2.7.18|The device can cap how many buffers a list may hold.
    packed.avail.1|packed|MAY|2.7.21.1|As soon as the first descriptor's flags are updated the device can fetch it and the \
    following driver descriptors.
    packed.availnotif.1|packed|MAY|2.7.21.2|Kicks can be suppressed through the device event suppression structure.
    shm.1|core|MUST NOT|2.10.2|Shared memory regions are not a vehicle for device control or data streaming.
    suspend.1|core|MUST|3.4.2|Writes of the SUSPEND bit are ignored until initialisation has completed.
    suspend.2|core|SHOULD|3.4.2|While suspended, configuration-space writes other than status are ignored.
    suspend.3|core|MUST NOT|3.4.2|No virtqueue notification is sent while suspended.
    suspend.4|core|MUST NOT|3.4.2|Virtqueues are not accessed while suspended.
    suspend.5|core|MUST NOT|3.4.2|The device changes no configuration field while suspended.
    suspend.6|core|MUST NOT|3.4.2|Config changes arising while suspended raise no notification at that time.
    suspend.7|core|MUST|3.4.2|Such a deferred config-change notification is delivered on resume.
    suspend.8|core|MUST|3.4.2|A SUSPEND request ends either in suspension or in DEVICE_NEEDS_RESET.
    suspend.9|core|MUST|3.4.2|A resume request (DRIVER_OK set while suspended) ends either in normal operation or in \
    DEVICE_NEEDS_RESET.
    suspend.10|core|SHOULD|3.4.2|Before reporting suspension the device stops taking further buffers.
    suspend.11|core|SHOULD|3.4.2|Before reporting suspension all buffers already being processed are returned as used.
    suspend.12|core|SHOULD|3.4.2|Before reporting suspension outstanding used-buffer notifications are sent.
    rfb.1|core|MUST|6.2|VERSION_1 (bit 32) is offered.
    rfb.2|core|MAY|6.2|The device can refuse to work if VERSION_1 is not accepted.
    rfb.3|core|SHOULD|6.2|ACCESS_PLATFORM (bit 33) is offered when the device's memory accesses are translated or \
    restricted by the platform.
    rfb.4|core|MAY|6.2|The device can refuse to work if an offered ACCESS_PLATFORM is not accepted.
    rfb.5|core|MUST|6.2|With IN_ORDER (bit 35) negotiated buffers are used in the order they were made available.
    rfb.6|core|MAY|6.2|The device can refuse to work if an offered ORDER_PLATFORM (bit 36) is not accepted.
    rfb.7|core|MAY|6.2|The device can fall back to slower emulation if an offered ORDER_PLATFORM is not accepted.
    rfb.10|core|MUST NOT|6.2|Without an SR-IOV capability, or off PCI, SR_IOV is not offered.
    i.cfg.gen.1|core|IMPLIED|2.4|The generation value is stable while no config field changes and differs across a change.
    i.cfg.le.1|core|IMPLIED|2.4|Multi-byte config fields are little-endian in the modern interface.
    i.notif.1|core|IMPLIED|2.3|Three notification kinds exist: config change and used buffer (device to driver), available \
    buffer (driver to device).
    i.feat.len.1|core|IMPLIED|2.2|Feature words beyond those a device uses read as zero.
    i.status.persist.1|core|IMPLIED|2.1|Written status bits read back as written until reset (except a refused \
    FEATURES_OK).
    i.split.size.1|split|IMPLIED|2.6|Queue size is a power of two and at most 32768.
    i.split.idx.1|split|IMPLIED|2.6.6, 2.6.8|Both idx counters are free-running 16-bit values starting at 0; ring slots \
    are idx modulo queue size.
    i.split.usedid.1|split|IMPLIED|2.6.8|used.id is the head descriptor index of the finished chain, zero-extended to 32 \
    bits.
    i.split.usedlen.1|split|IMPLIED|2.6.8|used.len counts bytes written into the writable part of the chain.
    i.split.freeorder.1|split|IMPLIED|2.6.8|Without IN_ORDER chains can be returned in any order.
    i.split.inorder.1|split|IMPLIED|2.6.9|With IN_ORDER a batch can be returned with one used entry naming its last chain; \
    it sits where the batch's first entry would be and idx advances by the batch size.
    i.split.event.1|split|IMPLIED|2.6.7, 2.6.10|Event comparison is wrap-safe: notify when (u16)(new-event-1) < \
    (u16)(new-old).
    i.split.event.2|split|IMPLIED|2.6.7, 2.6.10|used_event lies right behind avail.ring[], avail_event right behind \
    used.ring[].
    i.split.event.3|split|IMPLIED|2.6.10|After enabling kicks the device looks at avail idx once more, or a request can \
    strand.
    i.split.indirect.1|split|IMPLIED|2.6.5.3|An indirect table holds len/16 entries, starts at entry 0, and its next \
    fields index inside the table.
    i.split.indirect.2|split|IMPLIED|2.6.5.3|Device treats a table length that is zero or no multiple of 16 as malformed.
    i.packed.size.1|packed|IMPLIED|2.7|Queue size is any value 1..32768, not only powers of two.
    i.packed.wrap.1|packed|IMPLIED|2.7.1|Both wrap counters start at 1 and flip when the last ring slot is passed.
    i.packed.avail.1|packed|IMPLIED|2.7.1|Available means AVAIL==wrap and USED!=wrap.
    i.packed.used.1|packed|IMPLIED|2.7.1|Used means AVAIL==USED==device wrap counter at that position.
    i.packed.used.2|packed|IMPLIED|2.7.6|One used descriptor per buffer; the position then advances by the number of ring \
    slots the list had.
    i.packed.used.3|packed|IMPLIED|2.7.3|WRITE in a used descriptor says data was written; len is meaningful only then.
    i.packed.used.4|packed|IMPLIED|2.7.2|flags is the commit point: id and len are stored before flags (release).
    i.packed.id.1|packed|IMPLIED|2.7.6|The buffer id is taken from the last descriptor of a list and echoed unchanged; ids \
    are opaque 16-bit values.
    i.packed.chain.1|packed|IMPLIED|2.7.6|Non-head members carry valid AVAIL/USED flags but only the head needs testing.
    i.packed.chain.2|packed|IMPLIED|2.7.6|A list may continue from the last ring slot to slot 0 with the wrap counter \
    flipped.
    i.packed.indirect.1|packed|IMPLIED|2.7.7|Indirect entries are sequential, count len/16; id and all flags but WRITE are \
    ignored.
    i.packed.indirect.2|packed|IMPLIED|2.7.7|WRITE on the descriptor with INDIRECT is ignored.
    i.packed.inorder.1|packed|IMPLIED|2.7.8|With IN_ORDER one used descriptor with the last buffer id can stand for a \
    batch, written at the batch's first slot; position advances by the whole batch.
    i.packed.event.1|packed|IMPLIED|2.7.10|flags 0 always notify, 1 never, 2 (EVENT_IDX only) when the named slot+wrap is \
    passed, 3 reserved.
    i.packed.event.2|packed|IMPLIED|2.7.10|The DESC comparison folds the wrap bit: event index = off - (wrap==current wrap \
    ? 0 : size), then wrap-safe compare against old and new positions.
    i.packed.event.3|packed|IMPLIED|2.7.14|When the device publishes mode DESC it stores off/wrap before flags.
    i.notifdata.1|core|IMPLIED|2.7.23|With NOTIFICATION_DATA the kick carries queue index plus next_off/next_wrap; the \
    device can use or ignore the extra bits.
    """
}
