/// Requests of a block device, and its configuration.
/// One line for each rule: name, area, level, section, words, and "=" with where it is seen or "-" with why not.

extension DriverRules {
  static let block = """
    legacy.d.blk.1|legacy|MUST|5.2.4.1|Config fields are in guest-native byte order on the legacy interface.|-a driver \
    cannot run in another byte order than that of this CPU
    d.blk.init.1|blk|SHOULD NOT|5.2.5.1|FLUSH is not accepted by a driver that cannot send flushes.|-whether a driver is \
    able to send flushes shows only when it sends one
    d.blk.init.2|blk|MAY|5.2.5.1|With neither CONFIG_WCE nor FLUSH the cache may be taken as writethrough.|-it leaves the \
    driver free to do either
    d.blk.init.3|blk|SHOULD|5.2.5.1|With FLUSH but not CONFIG_WCE the cache is taken as writeback.|-it concerns what \
    the driver does with what it reads, which the device does not see
    d.blk.init.4|blk|MUST NOT|5.2.5.1|writeback is read only after FEATURES_OK.|=N
    d.zoned.init.1|blk-zoned|MUST NOT|5.2.5.1|ZONED is not accepted by a driver unable to handle the HM, HA or NONE \
    models.|-what a driver can handle shows only in what it does
    d.zoned.init.2|blk-zoned|MUST NOT|5.2.5.1|With an HM device the driver does not accept DISCARD (the text says \
    offered, accepted is meant).|=Q
    d.zoned.init.3|blk-zoned|MAY|5.2.5.1|With HA or NONE, ZONED and DISCARD are chosen independently.|-it leaves \
    the driver free to do either
    d.zoned.init.4|blk-zoned|MUST NOT|5.2.5.1|A driver that sees HM and cannot handle it does not set \
    FEATURES_OK.|-what a driver can handle shows only in what it does
    d.zoned.init.5|blk-zoned|MUST|5.2.5.1|It sets FAILED in that case (second half of the previous sentence).|-what \
    a driver can handle shows only in what it does
    d.zoned.init.6|blk-zoned|MAY|5.2.5.1|A driver unaware of zones may treat HA as a plain disk.|-only with a \
    host-aware disk, which this device is not
    d.zoned.init.7|blk-zoned|SHOULD|5.2.5.1|It then ignores the other zoned fields.|-it concerns what the driver does \
    with what it reads, which the device does not see
    legacy.d.blk.2|legacy|MAY|5.2.5.3|A legacy driver may read or write writeback before DRIVER or DRIVER_OK.|-it leaves \
    the driver free to do either
    d.blk.op.1|blk|SHOULD|5.2.6.1|After a config-change notification capacity is re-read.|-no time limit is given: a \
    driver may read it at any later moment
    d.blk.op.2|blk|MUST NOT|5.2.6.1|No request reaches past capacity.|=Q
    d.blk.op.3|blk|SHOULD|5.2.6.1|RO is accepted if offered.|=R
    d.blk.op.4|blk|MUST|5.2.6.1|sector is 0 in FLUSH.|=Q
    d.blk.op.5|blk|SHOULD NOT|5.2.6.1|FLUSH carries no data.|=Q
    d.blk.op.6|blk|MUST|5.2.6.1|IN and OUT data lengths are multiples of 512.|=Q
    d.blk.op.7|blk|MUST|5.2.6.1|Discard, secure-erase and write-zeroes data lengths are multiples of 16.|=Q
    d.blk.op.8|blk|MUST|5.2.6.1|GET_ID data length is exactly 20.|=Q
    d.blk.op.9|blk|MUST NOT|5.2.6.1|Discard segments do not outnumber max_discard_seg.|=Q
    d.blk.op.10|blk|MUST NOT|5.2.6.1|Secure-erase segments do not outnumber max_secure_erase_seg.|=Q
    d.blk.op.11|blk|MUST NOT|5.2.6.1|Write-zeroes segments do not outnumber max_write_zeroes_seg.|=Q
    d.blk.op.12|blk|MAY|5.2.6.1|With CONFIG_WCE writeback may be toggled (0 writethrough, 1 writeback).|-it leaves the \
    driver free to do either
    d.blk.op.13|blk|MUST NOT|5.2.6.1|Setting writeback to 0 is not taken as a flush of earlier writes.|-it concerns \
    what the driver does with what it reads, which the device does not see
    d.blk.op.14|blk|MUST|5.2.6.1|unmap is 0 in discard segments.|=Q
    d.blk.op.15|blk|MUST NOT|5.2.6.1|Discarded sectors have unspecified content.|-it concerns what the driver does with \
    what it reads, which the device does not see
    d.blk.op.16|blk|MUST NOT|5.2.6.1|After IOERR on a multi-segment discard or write-zeroes nothing is known about any \
    segment.|-it concerns what the driver does with what it reads, which the device does not see
    d.zoned.op.1|blk-zoned|MUST|5.2.6.1|Zone addresses are multiples of 512 bytes (trivially true for sector \
    units).|-sectors are 512 bytes, so every address complies
    d.zoned.op.2|blk-zoned|MUST|5.2.6.1|REPORT names any sector inside the first zone wanted.|-any sector is in a \
    zone, and only the driver knows which it wants
    d.zoned.op.3|blk-zoned|MAY|5.2.6.1|That sector need not be the zone start.|-it leaves the driver free to do either
    d.zoned.op.4|blk-zoned|MUST|5.2.6.1|OPEN, CLOSE, FINISH and RESET name the zone's first sector.|=Q
    d.zoned.op.5|blk-zoned|MUST|5.2.6.1|RESET_ALL has sector 0.|=Q
    d.zoned.op.6|blk-zoned|MUST|5.2.6.1|APPEND names the zone start.|=Q
    d.zoned.op.7|blk-zoned|MUST|5.2.6.1|APPEND size is a multiple of write_granularity.|=Q
    d.zoned.op.8|blk-zoned|MUST NOT|5.2.6.1|APPEND size stays within max_append_sectors.|=Q
    d.zoned.op.9|blk-zoned|MAY|5.2.6.1|append_sector can be read after success.|-it leaves the driver free to do either
    d.zoned.op.10|blk-zoned|MUST|5.2.6.1|Writes to sequential zones have granule-multiple size, granule-aligned \
    position and fit the remaining capacity (three sub-rules).|-only the disk knows its zones and their write pointers: \
    it answers such a write with ZONE_UNALIGNED_WP or ZONE_INVALID_CMD
    legacy.d.blk.3|legacy|MUST|5.2.6.3|virtio_blk_req fields are in guest-native byte order on the legacy interface \
    (shared with legacy.blk.5).|-a driver cannot run in another byte order than that of this CPU
    legacy.d.blk.4|legacy|SHOULD|5.2.6.3|The used len of a legacy device is not trusted.|-it concerns what the driver \
    does with what it reads, which the device does not see
    legacy.d.blk.5|legacy|MAY|5.2.6.3|A driver may set writeback to 0 to be safe.|-it leaves the driver free to do either
    legacy.d.blk.6|legacy|MAY|5.2.6.3|Or it may send an explicit flush after each write.|-it leaves the driver free to do \
    either
    legacy.d.blk.7|legacy|MUST|5.2.6.3|A SCSI command occupies one readable descriptor of its own.|-only with SCSI, which \
    this device does not offer
    legacy.d.blk.8|legacy|SHOULD|5.2.6.3|The SCSI data_len result is ignored.|-only with SCSI, which this device does not \
    offer
    legacy.d.blk.9|legacy|MUST|5.2.6.4|Without ANY_LAYOUT: one header descriptor (text says 8 bytes, the header is 16), \
    then data, then a separate 1-byte status descriptor.|=Q
    legacy.d.blk.10|legacy|MUST|5.2.6.4|Without ANY_LAYOUT: sense is a single 96-byte writable descriptor.|-only with \
    SCSI, which this device does not offer
    legacy.d.blk.11|legacy|MUST|5.2.6.4|Without ANY_LAYOUT: errors, data_len, sense_len and residual share one separate \
    descriptor (v1.1 states this twice).|-only with SCSI, which this device does not offer
    i.driver.buffer|blk|IMPLIED|5.2.6|The header of a request stays as it is until the request is used.|=Q
    i.driver.header|blk|IMPLIED|5.2.6|A request begins with 16 bytes that the device can read.|=Q
    i.driver.status|blk|IMPLIED|5.2.6|A request has a byte at its end that the device can write.|=Q
    i.driver.type|blk|IMPLIED|5.2.6|A request is of a type that exists, and whose feature was accepted.|=Q
    """
}
