/// Attacks on devices, as rows of one list: a device has to survive each. The section names the target.

extension ClauseTable {
  static let input = """
    bad.1|input|ROBUST|available ring|avail.idx is ahead by more than the ring has entries.
    bad.2|input|ROBUST|available ring|avail.idx goes backwards.
    bad.3|input|ROBUST|available ring|A head is not in the table.
    bad.4|input|ROBUST|descriptors|next is not in the table.
    bad.5|input|ROBUST|descriptors|A chain loops.
    bad.6|input|ROBUST|available ring|A head that is in flight is made available again.
    bad.7|input|ROBUST|available ring|More is in flight than the ring has entries.
    bad.8|input|ROBUST|descriptors|A descriptor has no bytes.
    bad.9|input|ROBUST|descriptors|A chain has more than 2^32 bytes.
    bad.10|input|ROBUST|indirect|A table is empty, has a partial entry, or has too many entries.
    bad.11|input|ROBUST|indirect|A table refers to a table; INDIRECT comes with NEXT, or without its feature.
    bad.12|input|ROBUST|descriptors|A readable descriptor follows a writable one.
    bad.13|input|ROBUST|memory|A buffer is outside memory, over an end or a border, or in a ring.
    bad.14|input|ROBUST|queue set-up|A ring is outside memory, or not aligned.
    bad.15|input|ROBUST|queue set-up|A ring has an invalid size.
    bad.16|input|ROBUST|request|A header has fewer than 16 bytes.
    bad.17|input|ROBUST|request|There is no writable byte for the status.
    bad.18|input|ROBUST|request|The status shares a descriptor with data.
    bad.19|input|ROBUST|request|A header changes after it was made available.
    bad.20|input|ROBUST|request|The data is not whole sectors.
    bad.21|input|ROBUST|request|A request ends beyond the disk, or overflows.
    bad.22|input|ROBUST|request|IN or OUT has no data.
    bad.23|input|ROBUST|request|Data has the wrong direction.
    bad.24|input|ROBUST|request|A read-only disk is written to by any type of request.
    bad.25|input|ROBUST|request|A type is unknown, or obsolete.
    bad.26|input|ROBUST|request|GET_ID has a buffer of a size other than 20.
    bad.27|input|ROBUST|request|Segments are partial, missing, or too many.
    bad.28|input|ROBUST|request|A segment of DISCARD has a flag.
    bad.29|input|ROBUST|request|A segment is too long, or overflows.
    bad.30|input|ROBUST|request|FLUSH has a sector or data.
    bad.31|input|ROBUST|used ring|The used length is never more than what was written.
    bad.32|input|ROBUST|life|A kick comes before DRIVER_OK.
    bad.33|input|ROBUST|notification|Event words are garbage; kicks come without end and for nothing.
    bad.34|input|ROBUST|configuration|Reads and writes outside the configuration space, or of read-only fields.
    bad.35|input|ROBUST|registers|A selector, a queue or a vector does not exist.
    bad.36|input|ROBUST|life|A reset, a stop or an end comes with requests in flight.
    bad.37|input|ROBUST|memory|The file behind guest memory becomes shorter, or a region goes away.
    bad.38|input|ROBUST|vhost-user|A message has a wrong size, wrong descriptors, or impossible regions.
    bad.39|input|ROBUST|vhost-user|An in-flight region has wrong numbers or garbage in it.
    bad.40|input|ROBUST|medium|A guest writes another format's header into a raw image.
    bad.41|input|ROBUST|medium|The medium fails.
    """
}
