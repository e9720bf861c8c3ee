/// Finishing images that a process has written to.
internal import Glibc
internal import Synchronization
internal import VirtioBlkDevice
internal import VirtioCore

enum ImageEnd {
  private final class Count: Sendable { let value = Atomic<Int>(0) }

  /// Finishes the images that need it, each on its own thread, because a medium may never answer.
  ///
  /// - Parameter limit: how long to wait for all of them.
  /// - Returns: paths of those that are not finished by then. Their threads keep running, so the process has to exit at
  ///   once.
  static func unfinished(_ images: [ImageFile], within limit: Duration) -> [String] {
    let tasks = images.filter(\.needsFinish).map { (image: $0, count: Count()) }
    for (image, count) in tasks {
      let body: @Sendable () -> Void = {
        image.finish()
        // Release: the effects of finishing are visible before it is reported.
        count.value.store(1, ordering: .releasing)
      }
      // Without a thread, the image is finished here.
      do { _ = try SystemThread(name: "image end", body) } catch { body() }
    }
    let end = ContinuousClock.now + limit
    while tasks.contains(where: { $0.count.value.load(ordering: .acquiring) == 0 }), ContinuousClock.now < end { usleep(pause) }
    return tasks.filter { $0.count.value.load(ordering: .acquiring) == 0 }.map(\.image.path)
  }

  /// Microseconds between checks.
  private static let pause: UInt32 = 500
}
