/// Split and packed rings.
/// One line for each rule: name, area, level, section, words, and "=" with where it is seen or "-" with why not.

extension DriverRules {
  static let ring = """
    d.split.align.1|split|MUST|2.6.1|Descriptor table, available ring and used ring start on 16-, 2- and 4-byte \
    boundaries.|=Q
    d.split.frame.1|split|MUST|2.6.4.2|All device-writable descriptors come after all device-readable ones.|=Q
    d.split.frame.2|split|SHOULD NOT|2.6.4.2|A buffer is not cut into needlessly many descriptors.|-the specification \
    does not say how many descriptors are too many
    d.split.desc.1|split|MUST NOT|2.6.5.2|A chain totals at most 2^32 bytes, which also rules out loops.|=Q
    d.split.desc.2|split|MUST|2.6.5.2|With IN_ORDER, next of slot x is x+1, or 0 for the last slot, when NEXT is set.|=Q
    d.split.indirect.1|split|MUST NOT|2.6.5.3.1|INDIRECT is used only after INDIRECT_DESC was negotiated.|=Q
    d.split.indirect.2|split|MUST NOT|2.6.5.3.1|Indirect tables do not nest.|=Q
    d.split.indirect.3|split|MUST NOT|2.6.5.3.1|A chain is never longer than the queue size.|=Q
    d.split.indirect.4|split|MUST NOT|2.6.5.3.1|INDIRECT and NEXT are never combined on one descriptor.|=Q
    d.split.indirect.5|split|MUST|2.6.5.3.1|With IN_ORDER an indirect table is laid out sequentially: entry 0 has next=1, \
    entry 1 has next=2, and so on.|=Q
    d.split.avail.1|split|MUST NOT|2.6.6.1|avail idx never moves backwards; published buffers cannot be withdrawn.|=Q
    d.split.usednotif.1|split|MUST|2.6.7.1|Without EVENT_IDX avail.flags holds 0 or 1.|=Q
    d.split.usednotif.2|split|MAY|2.6.7.1|Without EVENT_IDX avail.flags=1 says no interrupts wanted.|-it leaves the \
    driver free to do either
    d.split.usednotif.3|split|MUST|2.6.7.1|With EVENT_IDX avail.flags stays 0.|=Q
    d.split.usednotif.4|split|MAY|2.6.7.1|With EVENT_IDX used_event picks the used idx at which an interrupt is \
    wanted.|-it leaves the driver free to do either
    d.split.usednotif.5|split|MUST|2.6.7.1|Interrupts without new used entries are tolerated.|-it concerns what the \
    driver does with what it reads, which the device does not see
    d.split.used.1|split|MUST NOT|2.6.8.3|Bytes past len in a writable buffer carry no information.|-it concerns what \
    the driver does with what it reads, which the device does not see
    d.split.used.2|split|SHOULD|2.6.8.3|Such bytes are disregarded.|-it concerns what the driver does with what it \
    reads, which the device does not see
    d.split.availnotif.1|split|MUST|2.6.10.1|used.flags is zero-initialised at allocation.|=Q
    d.split.availnotif.2|split|MUST|2.6.10.1|Without EVENT_IDX avail_event is not consulted.|-what a driver reads in the \
    used ring cannot be seen; whether it kicks by the flags is checked as d.split.availnotif.3 and 4
    d.split.availnotif.3|split|SHOULD NOT|2.6.10.1|Without EVENT_IDX used.flags==1 means do not kick after publishing.|=K
    d.split.availnotif.4|split|MUST|2.6.10.1|Without EVENT_IDX used.flags==0 means kick after publishing.|=K
    d.split.availnotif.5|split|MUST|2.6.10.1|With EVENT_IDX the low bit of used.flags is not consulted.|-what a driver \
    reads in the used ring cannot be seen; whether it kicks by avail_event is checked as d.split.availnotif.6 and 7
    d.split.availnotif.6|split|MUST|2.6.10.1|With EVENT_IDX a kick follows when the avail slot just filled is the one \
    named by avail_event.|=K
    d.split.availnotif.7|split|SHOULD NOT|2.6.10.1|With EVENT_IDX no kick is sent otherwise.|=K
    d.split.supply.1|split|MAY|2.6.13|Several buffers can be published with a single idx update and kick.|-it leaves the \
    driver free to do either
    d.split.supply.2|split|MAY|2.6.13.2|Ring entries can be filled at idx modulo queue size right away.|-it leaves the \
    driver free to do either
    d.split.supply.3|split|MAY|2.6.13.2|Many entries can be filled before idx moves.|-it leaves the driver free to do \
    either
    d.split.supply.4|split|MUST|2.6.13.3.1|A write barrier separates ring/descriptor stores from the idx store.|-a \
    barrier cannot be seen from outside; a missing one shows, if at all, as an incomplete chain or a missing kick
    d.split.supply.5|split|MUST|2.6.13.4.1|A full barrier separates the idx store from the read of used.flags / \
    avail_event.|-a barrier cannot be seen from outside; a missing one shows, if at all, as an incomplete chain or a \
    missing kick
    d.split.recv.1|split|MAY|2.6.14|Interrupts can be turned off while used entries are being drained, if re-checked \
    after turning them on.|-it leaves the driver free to do either
    d.packed.align.1|packed|MUST|2.7.11|Descriptor ring, driver event and device event areas start on 16-, 4- and 4-byte \
    boundaries.|=Q
    d.packed.desc.1|packed|MUST NOT|2.7.16|A descriptor is first rewritten only after its USED bit was seen to change.|=Q
    d.packed.desc.2|packed|MUST NOT|2.7.16|A descriptor is left alone once its AVAIL bit was flipped.|=Q
    d.packed.desc.3|packed|MUST|2.7.16|Notification data carries next_off and next_wrap of the first descriptor not yet \
    available.|=N
    d.packed.desc.4|packed|MAY|2.7.16|Kicks can repeat with identical offsets.|-it leaves the driver free to do either
    d.packed.sg.1|packed|MUST NOT|2.7.17|A list is no longer than the device permits.|=Q
    d.packed.sg.2|packed|MUST NOT|2.7.17|A list is no longer than the queue size.|=Q
    d.packed.sg.3|packed|MUST|2.7.17|All device-writable elements come after all device-readable ones.|=Q
    d.packed.sg.4|packed|MUST NOT|2.7.17|The driver does not count on the device using extra ring descriptors to write \
    out a whole list of used elements.|-it concerns what the driver expects of the device
    d.packed.sg.5|packed|MUST|2.7.17|There is room for the complete list before any of it is published.|=Q
    d.packed.sg.6|packed|MUST NOT|2.7.17|The head descriptor becomes available last.|=Q
    d.packed.indirect.1|packed|MUST NOT|2.7.19|INDIRECT is used only after INDIRECT_DESC was negotiated.|=Q
    d.packed.indirect.2|packed|MUST NOT|2.7.19|Inside an indirect table only the WRITE flag is ever set.|=Q
    d.packed.indirect.3|packed|MUST NOT|2.7.19|A chain is no longer than the device permits.|=Q
    d.packed.indirect.4|packed|MUST NOT|2.7.19|INDIRECT descriptors never take part in a NEXT-linked list.|=Q
    d.packed.supply.1|packed|MAY|2.7.21.1|Several buffers can be placed before the first one's flags are flipped.|-it \
    leaves the driver free to do either
    d.packed.supply.2|packed|MUST|2.7.21.1.1|A write barrier precedes the flags store that publishes.|-a barrier cannot \
    be seen from outside; a missing one shows, if at all, as an incomplete chain or a missing kick
    d.packed.supply.3|packed|MUST|2.7.21.3.1|A full barrier precedes the read of the device event area.|-a barrier \
    cannot be seen from outside; a missing one shows, if at all, as an incomplete chain or a missing kick
    d.packed.recv.1|packed|MAY|2.7.22|Interrupts can be turned off while used descriptors are drained, if re-checked \
    afterwards.|-it leaves the driver free to do either
    i.driver.head|ring|IMPLIED|2.6.5|What becomes available is a descriptor of the table, or a buffer ID, that the device \
    does not have already.|=Q
    i.driver.next|ring|IMPLIED|2.6.5|Each link of a chain leads to a descriptor of its table.|=Q
    i.driver.table|ring|IMPLIED|2.6.5.3|An indirect table is a whole number of descriptors, at least one.|=Q
    i.driver.used|ring|IMPLIED|2.6.8|What the device has written to its part of the ring stays as it is.|=Q
    i.driver.kick|ring|IMPLIED|2.7.7|A kick comes for what becomes available in a packed ring while the device has asked \
    for one.|=K
    i.driver.event|ring|IMPLIED|2.7.10|The driver event area of a packed ring has flags 0, 1, or with EVENT_IDX 2.|=Q
    """
}
