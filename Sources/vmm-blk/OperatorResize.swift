/// Resizing disks while they are served.
internal import Control
internal import OperatorWords
internal import Sockets
internal import VirtioBlkDevice
internal import VirtioCore

/// Used on the loop's thread; what waits for a medium runs on helper threads.
final class OperatorResize {
  private let loop: EventLoop
  private let log: ServeLog
  /// Disks whose medium has not answered yet.
  private var busy: Set<String> = []

  /// How long requests in flight may take before an image is truncated.
  private static let restLimit = Duration.seconds(30)

  init(in loop: EventLoop, log: ServeLog) {
    self.loop = loop
    self.log = log
  }

  func resize(_ disk: any OperatedDisk, _ request: Operator.Request, _ connection: ControlConnection) {
    let (device, image, name) = (disk.device, disk.device.image, disk.name)
    func refuse(_ reason: String) { connection.answer(ControlLine(Operator.Answer(error: reason))) }
    guard busy.insert(name).inserted else { return refuse("\(name) is being resized already") }
    let before = image.size
    let done = { [self] (result: Result<UInt64, OperatorRefusal>) in
      busy.remove(name)
      switch result {
      case .success(let size):
        if size != before { log.note("\(connection.peer) resizes \(name) from \(before) to \(size) bytes") }
        device.resize(to: size)
        connection.answer(ControlLine(Operator.Resized(size: size)))
      case .failure(let refusal): refuse("\(refusal)")
      }
    }
    guard let size = request.size else { return onHelper(image, nil, then: done) }
    guard !image.isBlockDevice else {
      return done(.failure(OperatorRefusal("\(image.path) is a block device: resize that, and leave out the size here")))
    }
    guard !image.isReadOnly else { return done(.failure(OperatorRefusal("\(image.path) is open for reading only"))) }
    guard size > 0, size % UInt64(image.logicalBlockSize) == 0, Int64(exactly: size) != nil else {
      return done(
        .failure(OperatorRefusal("\(size) bytes are not a whole number of blocks of \(image.logicalBlockSize) bytes")))
    }
    guard size < image.size else { return onHelper(image, size, then: done) }
    guard request.shrink == true else {
      return done(
        .failure(
          OperatorRefusal(
            "\(name) has \(image.size) bytes, and what lies beyond \(size) would be lost: confirm that with --shrink")))
    }
    shrink(disk, to: size, then: done)
  }

  /// Shrinks the disk first, then its image, so that nothing in flight can extend the image again.
  private func shrink(
    _ disk: any OperatedDisk, to size: UInt64, then done: @escaping (Result<UInt64, OperatorRefusal>) -> Void
  ) {
    let device = disk.device
    let wasPaused = device.isPaused
    let end = ContinuousClock.now + Self.restLimit
    device.pause()
    func goOn() { if !wasPaused { device.resume() } }
    func waitForRest() {
      guard device.isPaused else { return done(.failure(OperatorRefusal("somebody has resumed \(disk.name) in the meantime"))) }
      guard ContinuousClock.now < end else {
        goOn()
        return done(.failure(OperatorRefusal("requests are still in flight after \(Self.restLimit), so nothing was changed")))
      }
      guard device.isAtRest else { return loop.after(.milliseconds(5)) { waitForRest() } }
      let before = device.image.size
      device.resize(to: size)
      onHelper(device.image, size) { result in
        // The image keeps its length.
        if case .failure = result { device.resize(to: before) }
        goOn()
        done(result)
      }
    }
    waitForRest()
  }

  /// - Parameter size: the new length of the image, which is set first.
  private func onHelper(
    _ image: ImageFile, _ size: UInt64?, then done: @escaping (Result<UInt64, OperatorRefusal>) -> Void
  ) {
    loop.perform(on: ErrandQueue()) { () -> Result<UInt64, OperatorRefusal> in
      do throws(ImageError) {
        if let size { try image.setLength(size) }
        return .success(try image.measure())
      } catch { return .failure(OperatorRefusal("\(error)")) }
    } then: {
      done($0)
    }
  }

  /// Checks whether the sizes of images have changed, as after SIGHUP.
  func look(at disks: [any OperatedDisk]) {
    for disk in disks where busy.insert(disk.name).inserted {
      let (device, image) = (disk.device, disk.device.image)
      onHelper(image, nil) { [self] result in
        busy.remove(disk.name)
        switch result {
        case .success(let size):
          guard size != image.size else { return }
          log.note("the image of \(disk.name) has \(size) bytes now, and had \(image.size)")
          device.resize(to: size)
        case .failure(let reason): log.warn("\(reason)")
        }
      }
    }
  }
}
