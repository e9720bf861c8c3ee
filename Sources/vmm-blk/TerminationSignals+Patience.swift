/// A process that is told to end while it opens its disks.
internal import Glibc
internal import Sockets
internal import VirtioBlkDevice

extension TerminationSignals {
  /// Lasts until one of the signals arrives, whose handler then ends the process.
  var patience: OpeningPatience {
    OpeningPatience { [descriptor = self.descriptor] in
      var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
      return unsafe poll(&entry, 1, 0) > 0
    }
  }
}
