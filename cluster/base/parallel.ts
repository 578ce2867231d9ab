/** Bounded parallelism for lists of work. */

/** Works on `count` items at a time. Fails with the first failure; what runs then runs on. */
export async function inParallel<T>(
  items: readonly T[],
  count: number,
  work: (item: T) => Promise<void>,
): Promise<void> {
  let next = 0;
  const worker = async (): Promise<void> => {
    while (next < items.length) await work(items[next++]!);
  };
  await Promise.all(Array.from({ length: Math.min(count, items.length) }, worker));
}
