/// pci-proxy FD INTERFACE IMAGE QUEUES [ZONED]: the device end of QEMU's `x-pci-proxy-dev`, so that kernels and firmware find
/// this project's PCI function among QEMU's own. ZONED are the words of `vmm-blk serve --zoned`. Scripts/guest/pci.py starts
/// both.
import Glibc
import OperatorWords
import VirtioCore
import VirtioRegisters

let words = CommandLine.arguments
guard
  (5...6).contains(words.count), let number = Int32(words[1]), let interface = RegisterInterface(name: words[2]),
  interface.isPCI,
  let queues = Int(words[4]), (1...64).contains(queues)
else {
  print("usage: pci-proxy FD pci|pci-legacy|pci-transitional IMAGE QUEUES [ZONED]")
  exit(2)
}
let zoned = words.count == 6 ? ZonedWords(argument: words[5]) : nil
if words.count == 6, zoned == nil {
  print("pci-proxy: '\(words[5])' describes no zones; expected \(ZonedWords.forms)")
  exit(2)
}
let link = ProxyLink(socket: OwnedDescriptor(number))
let disk = try ProxiedDisk(image: words[3], interface, queues: queues, zoned: zoned?.options)
serving: while true {
  var entries = [link.socket.rawValue, disk.rung.rung.rawValue, disk.eventDescriptor, disk.line?.again.rawValue ?? -1]
    .map { pollfd(fd: $0, events: Int16(POLLIN), revents: 0) }
  if unsafe poll(&entries, nfds_t(entries.count), -1) < 0, errno != EINTR { break }
  if entries[2].revents != 0 { disk.handleEvents() }
  for entry in [entries[1], entries[3]] where entry.revents != 0 {
    EventCounter.drain(entry.fd)
    disk.lineChanged()
  }
  if entries[0].revents != 0 {
    guard let message = link.receive() else { break serving }
    disk.handle(message, link)
  }
}
disk.close()
print(disk.report)
print("accesses: \(disk.accesses.sorted { $0.key < $1.key }.map { "\($0.key) \($0.value)" }.joined(separator: ", "))")
