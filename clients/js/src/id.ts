/**
 * Returns a UUID of version 7 (RFC 9562): 48 bits of time in milliseconds, then
 * 74 bits at random.
 */
export function uuid(now = Date.now()): string {
  const b = crypto.getRandomValues(new Uint8Array(16));
  const high = Math.floor(now / 0x1_0000);
  const view = new DataView(b.buffer);
  view.setUint32(0, high);
  view.setUint16(4, now % 0x1_0000);
  view.setUint8(6, 0x70 | (view.getUint8(6) & 0x0f));
  view.setUint8(8, 0x80 | (view.getUint8(8) & 0x3f));
  const hex = Array.from(b, (x) => x.toString(16).padStart(2, "0")).join("");
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`;
}
