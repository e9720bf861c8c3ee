/// Rules of block devices: id, where it applies, level, section, and what it asks for, in our own words.

extension ClauseTable {
  static let block = """
    blk.init.1|blk|SHOULD|5.2.5.2|FLUSH (bit 9) is always offered.
    blk.init.2|blk|MUST|5.2.5.2|FLUSH is offered whenever CONFIG_WCE (bit 11) is.
    blk.init.3|blk|MUST|5.2.5.2|If CONFIG_WCE is negotiated without FLUSH, writeback starts as 0.
    blk.init.4|blk|MUST|5.2.5.2|The padding fields unused0 and unused1 are zero.
    zoned.init.1|blk-zoned|SHOULD NOT|5.2.5.2|A device that is not zoned leaves ZONED (bit 17) unoffered.
    zoned.init.2|blk-zoned|MUST NOT|5.2.5.2|A legacy device never offers ZONED.
    zoned.init.3|blk-zoned|SHOULD|5.2.5.2|If ZONED is declined, a host-aware or NONE-model device continues with all \
    zoned config fields zeroed.
    zoned.init.4|blk-zoned|MUST|5.2.5.2|If ZONED is declined, a host-managed device refuses FEATURES_OK.
    zoned.init.5|blk-zoned|MUST|5.2.5.2|With ZONED negotiated, model is NONE (0) for drive-managed or non-zoned operation.
    zoned.init.6|blk-zoned|MUST|5.2.5.2|With ZONED negotiated, model is HM (1) for host-managed operation.
    zoned.init.7|blk-zoned|MUST|5.2.5.2|With ZONED negotiated, model is HA (2) for host-aware operation.
    zoned.init.8|blk-zoned|MUST|5.2.5.2|For HM/HA zone_sectors gives the common zone size in 512-byte sectors.
    zoned.init.9|blk-zoned|MAY|5.2.5.2|Only the last zone can be smaller than the others.
    zoned.init.10|blk-zoned|MUST|5.2.5.2|For HM/HA max_open_zones states the open-zone limit, 0 meaning unlimited.
    zoned.init.11|blk-zoned|MUST|5.2.5.2|For HM/HA max_active_zones states the active-zone limit, 0 meaning unlimited.
    zoned.init.12|blk-zoned|MUST|5.2.5.2|For HM/HA max_append_sectors states the largest append that can succeed.
    zoned.init.13|blk-zoned|MUST NOT|5.2.5.2|max_append_sectors does not exceed seg_max * size_max.
    zoned.init.14|blk-zoned|MAY|5.2.5.2|max_append_sectors can be 0 when append is unsupported.
    zoned.init.15|blk-zoned|MUST|5.2.5.2|For HM/HA write_granularity gives the byte alignment required of OUT and \
    ZONE_APPEND in sequential zones.
    zoned.init.16|blk-zoned|MUST|5.2.5.2|For HM/HA the padding unused2 is zero.
    blk.op.1|blk|MAY|5.2.6.2|capacity can change while the device is running.
    blk.op.2|blk|SHOULD|5.2.6.2|A capacity change is announced with a config-change notification.
    blk.op.3|blk|MUST|5.2.6.2|If RO is offered every write request completes with IOERR.
    blk.op.4|blk|MUST NOT|5.2.6.2|If RO is offered no write changes data.
    blk.op.5|blk|MUST|5.2.6.2|Discard and write-zeroes segments carrying an unknown flag bit complete with UNSUPP.
    blk.op.6|blk|MUST|5.2.6.2|Secure-erase segments carrying an unknown flag bit complete with UNSUPP.
    blk.op.7|blk|MUST|5.2.6.2|A discard segment with the unmap flag completes with UNSUPP.
    blk.op.8|blk|MAY|5.2.6.2|Discard can release the addressed sectors in the backing store.
    blk.op.9|blk|MAY|5.2.6.2|Write-zeroes with unmap can release the addressed sectors as if discarded.
    blk.op.10|blk|MUST|5.2.6.2|After a completed write-zeroes, reads of the range give zeroes whether or not unmap was \
    set.
    blk.op.11|blk|SHOULD|5.2.6.2|write_zeroes_may_unmap is 0 exactly when write-zeroes can never deallocate.
    blk.op.12|blk|MAY|5.2.6.2|write_zeroes_may_unmap can change at run time.
    blk.op.13|blk|SHOULD|5.2.6.2|Such a change is announced with a config-change notification.
    blk.op.14|blk|MUST|5.2.6.2|Persistent backing: if FLUSH was offered but neither FLUSH nor CONFIG_WCE was negotiated, a \
    write is on stable storage before its completion is reported.
    blk.op.15|blk|MUST|5.2.6.2|Persistent backing: with CONFIG_WCE negotiated and writeback==0 throughout, a write is on \
    stable storage before its completion is reported.
    blk.op.16|blk|MUST|5.2.6.2|Persistent backing: all writes completed before a FLUSH was submitted are on stable storage \
    before that FLUSH completes.
    blk.op.17|blk|MAY|5.2.6.2|If FLUSH was not offered the device can still commit writes before completing them.
    blk.op.18|blk|SHOULD|5.2.6.2|Backing storage with lifetime metrics leads to LIFETIME (bit 15) being offered.
    blk.op.19|blk|MUST NOT|5.2.6.2|LIFETIME is not offered when the metrics cannot be obtained or are meaningless.
    blk.op.20|blk|MUST NOT|5.2.6.2|Reserved values never appear in the reported lifetime metrics.
    zoned.op.1|blk-zoned|MUST|5.2.6.2|Without ZONED negotiated all zone request types (15,16,18,20,22,24,26) complete with \
    UNSUPP.
    zoned.op.2|blk-zoned|MUST|5.2.6.2|OPEN, CLOSE, FINISH or RESET aimed at a conventional zone completes with \
    ZONE_INVALID_CMD.
    zoned.op.3|blk-zoned|MUST|5.2.6.2|APPEND aimed at a zone that is not SWR completes with ZONE_INVALID_CMD.
    zoned.op.4|blk-zoned|MUST|5.2.6.2|OPEN that cannot reach the explicitly-open state completes with ZONE_INVALID_CMD.
    zoned.op.5|blk-zoned|MUST|5.2.6.2|OPEN lacking zone resources leaves the state alone and completes with \
    ZONE_OPEN_RESOURCE or ZONE_ACTIVE_RESOURCE.
    zoned.op.6|blk-zoned|MUST|5.2.6.2|CLOSE that cannot reach the closed state completes with ZONE_INVALID_CMD.
    zoned.op.7|blk-zoned|MUST|5.2.6.2|FINISH that cannot reach the full state leaves the state alone and completes with \
    ZONE_INVALID_CMD.
    zoned.op.8|blk-zoned|MUST|5.2.6.2|RESET that cannot reach the empty state leaves the state alone and completes with \
    ZONE_INVALID_CMD.
    zoned.op.9|blk-zoned|MUST|5.2.6.2|A write or append that needs an implicit open but lacks resources completes with \
    ZONE_OPEN_RESOURCE or ZONE_ACTIVE_RESOURCE.
    zoned.op.10|blk-zoned|MUST|5.2.6.2|APPEND whose sector is not the first sector of a zone completes with \
    ZONE_INVALID_CMD.
    zoned.op.11|blk-zoned|MUST|5.2.6.2|APPEND or OUT larger than the zone's remaining writable capacity completes with \
    ZONE_INVALID_CMD.
    zoned.op.12|blk-zoned|MUST|5.2.6.2|A successful APPEND reports the first sector it wrote in append_sector.
    zoned.op.13|blk-zoned|MUST|5.2.6.2|With max_append_sectors==0 an APPEND completes with UNSUPP.
    zoned.op.14|blk-zoned|MUST|5.2.6.2|With max_append_sectors!=0 an APPEND larger than it completes with \
    ZONE_INVALID_CMD.
    zoned.op.15|blk-zoned|MUST|5.2.6.2|APPEND, IN or OUT on an SWR zone that spans more than one zone completes with \
    ZONE_INVALID_CMD.
    zoned.op.16|blk-zoned|MUST|5.2.6.2|OUT whose sector is not at the write pointer completes with ZONE_UNALIGNED_WP (SWR \
    zones per the surrounding text).
    zoned.op.17|blk-zoned|MAY|5.2.6.2|Implicitly open zones can be closed by the device to free open resources.
    zoned.op.18|blk-zoned|MUST|5.2.6.2|OUT or APPEND to a read-only zone completes with ZONE_INVALID_CMD.
    zoned.op.19|blk-zoned|MUST|5.2.6.2|Any request to an offline zone completes with ZONE_INVALID_CMD.
    zoned.op.20|blk-zoned|MUST|5.2.6.2|Sectors between the write pointer and the zone end count as unwritten data when \
    read.
    zoned.op.21|blk-zoned|MUST|5.2.6.2|A read touching unwritten data either returns a fill pattern or fails the request.
    zoned.op.22|blk-zoned|MUST|5.2.6.2|With ZONED and SECURE_ERASE both negotiated, secure_erase_sector_alignment is a \
    multiple of zone_sectors.
    zoned.op.23|blk-zoned|MUST|5.2.6.2|With both negotiated, secure-erase sizes are multiples of zone_sectors (written as \
    a device rule but satisfied by the driver).
    zoned.op.24|blk-zoned|MUST|5.2.6.2|On a zoned device a secure erase acts on its zone range like ZONE_RESET.
    i.blk.units.1|blk|IMPLIED|5.2.4|capacity, sector and num_sectors always count 512-byte units whatever blk_size says.
    i.blk.units.2|blk|IMPLIED|5.2.4|max_discard_sectors, discard_sector_alignment, max_write_zeroes_sectors (1.2: also \
    secure-erase) are in 512-byte units; min_io_size, opt_io_size and alignment_offset in logical blocks; \
    write_granularity in bytes.
    i.blk.mq.1|blk|IMPLIED|5.2.2|Without MQ there is one request queue; with MQ num_queues says how many (bit known to \
    drivers long before v1.2 text).
    i.blk.req.1|blk|IMPLIED|5.2.6|The 16-byte header is the first readable bytes and the status byte is the last writable \
    byte, regardless of descriptor cuts.
    i.blk.rw.1|blk|IMPLIED|5.2.6|IN fills data from sector*512, OUT stores data at sector*512.
    i.blk.status.1|blk|IMPLIED|5.2.6|Every finished request gets a status byte 0, 1 or 2 (zoned: up to 6).
    i.blk.unsupp.1|blk|IMPLIED|5.2.6|Unknown request types end with UNSUPP.
    i.blk.getid.1|blk|IMPLIED|5.2.6|GET_ID returns up to 20 ASCII bytes padded with NUL; exactly 20 means no terminator.
    i.blk.discard.1|blk|IMPLIED|5.2.6|Discard, write-zeroes, secure-erase data is an array of 16-byte segments; the header \
    sector is unused.
    i.blk.wz.1|blk|IMPLIED|5.2.6|unmap in write-zeroes is permission, not an order, and zero reads still follow.
    i.blk.seg.1|blk|IMPLIED|5.2.6|IOERR on a multi-segment request leaves every segment undetermined.
    i.blk.ro.1|blk|IMPLIED|5.2.5|A device that sets RO fails all write requests, including discard, write-zeroes and \
    secure-erase in practice.
    i.blk.wce.1|blk|IMPLIED|5.2.5|writeback is 0 for writethrough, 1 for writeback; a driver write takes effect for later \
    requests.
    i.blk.lifetime.1|blk|IMPLIED|5.2.6|GET_LIFETIME returns 6 bytes: three le16.
    i.zoned.report.1|blk-zoned|IMPLIED|5.2.6|REPORT starts at the zone containing sector and nr_zones equals the count of \
    complete descriptors that fit.
    i.zoned.report.2|blk-zoned|IMPLIED|5.2.6|Conventional zones always report NOT_WP; z_wp undefined for CONV, RDONLY, \
    FULL, OFFLINE.
    i.zoned.report.3|blk-zoned|IMPLIED|5.2.6|z_cap never exceeds zone_sectors.
    i.zoned.sm.1|blk-zoned|IMPLIED|5.2.6|EMPTY goes to IOPEN on a non-empty write/append and to EOPEN on OPEN; RESET keeps \
    it EMPTY successfully.
    i.zoned.sm.2|blk-zoned|IMPLIED|5.2.6|IOPEN goes to EOPEN on OPEN, CLOSED on CLOSE (or implicitly at the limit), FULL \
    on FINISH or when filled, EMPTY on RESET/RESET_ALL.
    i.zoned.sm.3|blk-zoned|IMPLIED|5.2.6|EOPEN goes to CLOSED on CLOSE if something was written, otherwise EMPTY; FULL on \
    FINISH or when filled; EMPTY on RESET/RESET_ALL; OPEN keeps it.
    i.zoned.sm.4|blk-zoned|IMPLIED|5.2.6|CLOSED goes to IOPEN on write, EOPEN on OPEN, EMPTY on RESET/RESET_ALL; CLOSE \
    keeps it (FINISH from CLOSED is not listed; peers pass it to the host zone layer).
    i.zoned.sm.5|blk-zoned|IMPLIED|5.2.6|FULL leaves only by RESET/RESET_ALL; FINISH keeps it.
    i.zoned.sm.6|blk-zoned|IMPLIED|5.2.6|RDONLY can only become OFFLINE; OFFLINE is final.
    i.zoned.res.1|blk-zoned|IMPLIED|5.2.6|IOPEN and EOPEN use one open resource; those plus CLOSED use one active \
    resource; when both limits break the answer is ACTIVE_RESOURCE.
    i.zoned.wp.1|blk-zoned|IMPLIED|5.2.6|A write to an SWR zone whose end is not granule aligned also gives UNALIGNED_WP.
    i.zoned.err.1|blk-zoned|IMPLIED|5.2.6|All other zone-related faults give ZONE_INVALID_CMD.
    i.zoned.resetall.1|blk-zoned|IMPLIED|5.2.6|RESET_ALL ignores sector (the driver section demands 0).
    i.zoned.append.1|blk-zoned|IMPLIED|5.2.6|In APPEND the last nine writable bytes are append_sector (le64) then status.
    """
}
