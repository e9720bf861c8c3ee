/// A FIFO for use off the hot path: its memory grows to the greatest length that it ever had.

struct Line<Element> {
  private var elements: [Element] = []
  private var first = 0

  /// A separate word: checking it does not touch the elements.
  private(set) var isEmpty = true

  mutating func append(_ element: Element) {
    elements.append(element)
    isEmpty = false
  }

  mutating func removeFirst() -> Element? {
    guard first < elements.count else { return nil }
    let element = elements[first]
    first += 1
    if first == elements.count {
      elements.removeAll(keepingCapacity: true)
      first = 0
      isEmpty = true
    } else if first >= 1024, first * 2 > elements.count {
      // A FIFO that is never empty must not keep the elements that have left it.
      elements.removeFirst(first)
      first = 0
    }
    return element
  }
}
