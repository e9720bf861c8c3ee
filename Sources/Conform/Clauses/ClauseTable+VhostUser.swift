/// Rules of the vhost-user protocol for a back-end, from the document in QEMU's docs/interop and what its front-ends need, in our own words.

extension ClauseTable {
  static let vhostUser = """
    vu.header.1|vhost-user|MUST|Header|A reply has the flags of version 1 and of a reply, and no others.
    vu.header.2|vhost-user|MUST|Header|A reply has the number of its request.
    vu.header.3|vhost-user|IMPLIED|Header|A message of another version is not served as if it were one of version 1.
    vu.size.1|vhost-user|IMPLIED|Message|A payload that is longer than its request needs is accepted as far as it is needed.
    vu.size.2|vhost-user|ROBUST|Message|A payload that is too short is refused, and does no harm.
    vu.ack.1|vhost-user|MUST|REPLY_ACK|A request without a reply of its own that asks for one gets exactly one, 0 for success.
    vu.ack.2|vhost-user|MUST|REPLY_ACK|A request that asks for no reply, and has none of its own, gets none.
    vu.ack.3|vhost-user|MUST|REPLY_ACK|A request with a reply of its own gets that one alone, whether it asks or not.
    vu.ack.4|vhost-user|MUST|REPLY_ACK|A request that fails and asks for a reply is not acknowledged with 0.
    vu.unknown.1|vhost-user|ROBUST|Message|An unknown request is refused or ignored, and does no harm.
    vu.feature.1|vhost-user|MUST|Feature bits|A back-end with protocol features offers bit 30.
    vu.feature.2|vhost-user|MUST|Protocol features|INBAND_NOTIFICATIONS comes with BACKEND_REQ and REPLY_ACK.
    vu.feature.3|vhost-user|IMPLIED|Protocol features|No protocol feature is offered that a block device cannot have: RARP, MTU, crypto.
    vu.feature.4|vhost-user|MUST|Protocol features|Requests of GET_FEATURES and GET_PROTOCOL_FEATURES can be made again, with the same answer.
    vu.queue.1|vhost-user|MUST|GET_QUEUE_NUM|With MQ the number of queues is at least 1.
    vu.queue.2|vhost-user|ROBUST|SET_VRING_NUM|A queue that does not exist is refused, and does no harm.
    vu.config.1|vhost-user|MUST|GET_CONFIG|The reply has as many bytes as the request, with the same offset and size.
    vu.config.2|vhost-user|IMPLIED|GET_CONFIG|256 bytes can be asked for: SPDK's front-end does.
    vu.config.3|vhost-user|ROBUST|GET_CONFIG|More than there can be is refused or answered with nothing, and does no harm.
    vu.ring.1|vhost-user|MUST|Ring states|A ring that was started and enabled is looked at without a further kick, or with the first.
    vu.ring.2|vhost-user|MUST|Ring states|A ring that is not enabled executes nothing.
    vu.ring.3|vhost-user|MUST|Ring states|Without bit 30 in SET_FEATURES rings need no SET_VRING_ENABLE.
    vu.ring.4|vhost-user|IMPLIED|Ring states|SET_VRING_ENABLE may come before the ring is set up.
    vu.ring.5|vhost-user|MUST|GET_VRING_BASE|It is answered when all that was in flight is finished, with the index of the next available chain.
    vu.ring.6|vhost-user|MUST|SET_VRING_BASE|A ring continues at the base that it is given.
    vu.ring.7|vhost-user|MUST|GET_VRING_BASE|A ring that was stopped is not touched.
    vu.ring.8|vhost-user|IMPLIED|SET_FEATURES|SET_FEATURES on a ring that runs, with the same features, does not stop it.
    vu.ring.9|vhost-user|IMPLIED|SET_VRING_CALL|A call descriptor can be replaced while the ring runs.
    vu.ring.10|vhost-user|IMPLIED|SET_VRING_CALL|A ring without a call descriptor is served all the same.
    vu.ring.11|vhost-user|ROBUST|SET_VRING_ADDR|Addresses that are not in memory are refused, or the ring is not served.
    vu.ring.12|vhost-user|IMPLIED|SET_VRING_ENABLE|A ring can be disabled and enabled again, and continues.
    vu.ring.13|vhost-user|IMPLIED|Ring states|Both indices of a ring continue from any base, also past 65535.
    vu.error.1|vhost-user|IMPLIED|SET_VRING_ERR|A ring that breaks signals its error descriptor.
    vu.memory.1|vhost-user|ROBUST|SET_MEM_TABLE|Regions that overlap, or come without their descriptors, are refused or do no harm.
    vu.memory.2|vhost-user|MUST|GET_MAX_MEM_SLOTS|At least as many regions as without that feature, 8, can be added.
    vu.memory.3|vhost-user|MUST|ADD_MEM_REG|Regions can be added and removed one by one.
    vu.memory.4|vhost-user|IMPLIED|SET_MEM_TABLE|The table can be replaced before rings are started.
    vu.inflight.1|vhost-user|MUST|GET_INFLIGHT_FD|The reply says how large the region is, with a descriptor that has room for it.
    vu.inflight.2|vhost-user|MUST|SET_INFLIGHT_FD|The region that was returned is accepted, and rings run with it.
    vu.inflight.3|vhost-user|ROBUST|SET_INFLIGHT_FD|A region that is too small, or full of garbage, does no harm.
    vu.status.1|vhost-user|MUST|SET_STATUS|The status reads back as it was set.
    vu.reset.1|vhost-user|MUST|RESET_DEVICE|It stops all rings; they can be set up again.
    vu.log.1|vhost-user|MUST|SET_LOG_BASE|Every page that is written to is marked in the log.
    vu.channel.1|vhost-user|IMPLIED|SET_BACKEND_REQ_FD|A channel for the back-end is accepted.
    vu.iommu.1|vhost-user|MUST|IOMMU support|With ACCESS_PLATFORM an address that is not translated is asked for, and not touched before it is.
    vu.iommu.2|vhost-user|MUST|IOMMU support|An invalidation is acknowledged when nothing uses the translation any more.
    vu.life.1|vhost-user|IMPLIED|Starting|When a front-end has disconnected, the next one is served.
    vu.life.2|vhost-user|ROBUST|Message|Bytes that are not a message, or half a message, do no harm.
    """
}
