/// What concerns every driver, whatever its bus and its rings.
/// One line for each rule: name, area, level, section, words, and "=" with where it is seen or "-" with why not.

extension DriverRules {
  static let core = """
    d.status.1|core|MUST|2.1.1|Each finished initialisation step is recorded by setting its status bit.|=N
    d.status.2|core|MUST NOT|2.1.1|Status bits are only ever added; clearing needs a full reset.|=R
    d.status.3|core|MUST|2.1.1|After writing FAILED the driver resets before it tries again.|=R
    d.status.4|core|SHOULD NOT|2.1.1|With DEVICE_NEEDS_RESET set, outstanding requests are not expected to finish \
    correctly.|-it concerns what the driver expects of requests in flight
    d.feat.1|core|MUST NOT|2.2.1|Only offered bits are accepted.|=R
    d.feat.2|core|MUST NOT|2.2.1|A bit is not accepted while its prerequisite is declined.|-no feature that this device \
    offers needs another one
    d.feat.3|core|SHOULD|2.2.1|A missing feature makes the driver fall back to a compatible mode.|-it concerns what the \
    driver does with what it reads, which the device does not see
    d.feat.4|core|MUST|2.2.1|If no fallback exists the driver sets FAILED and stops.|-only the driver knows whether it \
    could have gone on; what it does after FAILED is checked as d.init.6
    d.feat.5|core|MUST|2.2.1|Offered bits are sanity-checked by the driver.|-it concerns what the driver does with what \
    it reads, which the device does not see
    d.feat.6|core|MUST|2.2.1|Bits that are unknown, reserved, foreign to the transport or foreign to the device type \
    are skipped.|-it concerns what the driver does with what it reads, which the device does not see
    d.feat.7|core|MUST NOT|2.2.1|Those same bits are never accepted.|=R
    d.feat.8|core|MUST NOT|2.2.1|An unknown offered bit is no reason to give up.|-it concerns what the driver does with \
    what it reads, which the device does not see
    d.reset.1|core|SHOULD|2.4.2|A reset is considered finished once status reads zero.|=R
    d.cfg.1|core|MUST NOT|2.4.1|Neither reads wider than 32 bits nor groups of fields are taken to be atomic.|-what a \
    driver takes for granted about a read does not show in the read; the loop that it needs is checked as d.cfg.2
    d.cfg.2|core|SHOULD|2.4.1|Config reads are wrapped in a loop that repeats until the generation is stable.|=N
    d.cfg.3|core|MUST|2.4.1|A conditional field is touched only if its feature is offered.|=R
    d.cfg.4|core|MUST NOT|2.4.1|No upper bound is placed on config or structure size.|-it concerns what the driver does \
    with what it reads, which the device does not see
    d.cfg.5|core|SHOULD|2.4.1|Only a minimum size is checked.|-it concerns what the driver does with what it reads, \
    which the device does not see
    d.vqreset.1|core|MUST|2.6.1.1.2|After asking for a queue reset the driver confirms it took place.|=N
    d.vqreset.2|core|MAY|2.6.1.1.2|Resources of the queue can be freed after that.|-it leaves the driver free to do either
    d.vqreset.3|core|MUST|2.6.1.2.2|Re-enabling repeats the full queue set-up, with the same or other parameters.|=N
    d.init.1|core|MUST|3.1.1|Order: reset; ACKNOWLEDGE; DRIVER; read offers and write the chosen subset; FEATURES_OK; \
    re-read FEATURES_OK; device and queue set-up; DRIVER_OK.|=N
    d.init.2|core|MAY|3.1.1|Config fields may be read during feature selection.|-it leaves the driver free to do either
    d.init.3|core|MUST NOT|3.1.1|Config fields are not written during feature selection.|=N
    d.init.4|core|MUST NOT|3.1.1|No further feature bits are accepted after FEATURES_OK.|=N
    d.init.5|core|SHOULD|3.1.1|An unrecoverable error in any step leads to FAILED.|-only the driver knows whether it \
    can recover from an error; what it does after FAILED is checked as d.init.6
    d.init.6|core|MUST NOT|3.1.1|Initialisation stops there.|=R
    d.init.7|core|MUST NOT|3.1.1|No kick is sent before DRIVER_OK.|=N
    d.cleanup.1|core|MUST NOT|3.3.1|Entries for buffers already handed to a live queue are not edited.|=Q
    d.cleanup.2|core|MUST|3.3.1|A queue is made non-live (device reset) before exposed buffers are taken back.|-it \
    cannot be seen when a driver reuses memory; that entries stay unchanged is checked as d.cleanup.1
    d.suspend.1|core|SHOULD NOT|3.4.1|SUSPEND is not written before DRIVER_OK or without the feature.|=R
    d.suspend.2|core|MUST|3.4.1|The driver polls until SUSPEND reads 1 and DRIVER_OK reads 0.|=N
    d.suspend.3|core|MUST NOT|3.4.1|After writing SUSPEND no buffers are published.|-a suspended device does not look at \
    its rings, and cannot tell later when something was published
    d.suspend.4|core|MUST NOT|3.4.1|After writing SUSPEND no kicks are sent.|=N
    d.suspend.5|core|MUST NOT|3.4.1|After writing SUSPEND no config field other than status is written.|=N
    d.suspend.6|core|MUST|3.4.1|On resume the driver waits for SUSPEND 0 and DRIVER_OK 1 before normal use.|=N
    d.rfb.1|core|MUST|6.1|VERSION_1 is accepted when offered.|=N
    d.rfb.2|core|MAY|6.1|Without that offer the driver may refuse.|-it leaves the driver free to do either
    d.rfb.3|core|SHOULD|6.1|ACCESS_PLATFORM is accepted when offered.|=N
    d.rfb.4|core|MUST|6.1|Then the IOMMU is switched off or programmed for the device.|-whether the driver has \
    programmed an IOMMU cannot be seen; an address outside guest memory is checked as d.rfb.5
    d.rfb.5|core|MUST|6.1|Without that offer only physical addresses are passed.|=Q
    d.rfb.6|core|SHOULD|6.1|RING_PACKED is accepted when offered.|=N
    d.rfb.7|core|SHOULD|6.1|ORDER_PLATFORM is accepted when offered.|=N
    d.rfb.8|core|MUST|6.1|With ORDER_PLATFORM real hardware barriers are used.|-a barrier cannot be seen from outside; \
    a missing one shows, if at all, as an incomplete chain or a missing kick
    d.rfb.13|core|SHOULD|6.1|NOTIF_CONFIG_DATA is accepted when offered.|=P
    """
}
