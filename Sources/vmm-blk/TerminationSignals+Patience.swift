/// A process that is told to end while it opens its disks.
internal import Glibc
internal import Sockets
internal import VirtioBlkDevice

extension TerminationSignals {
  /// Until one of the signals has come; its handler then ends the process.
  var patience: OpeningPatience {
    OpeningPatience { [descriptor = self.descriptor] in
      var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
      return unsafe poll(&entry, 1, 0) > 0
    }
  }
}
