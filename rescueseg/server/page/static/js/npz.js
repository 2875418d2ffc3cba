// Arrays from the server's npz files: a zip of .npy members, stored or deflated.

const TYPES = {
  b1: Uint8Array, u1: Uint8Array, i1: Int8Array, u2: Uint16Array, i2: Int16Array, u4: Uint32Array, i4: Int32Array,
  f4: Float32Array, f8: Float64Array, u8: BigUint64Array, i8: BigInt64Array,
};
const [END, ENTRY, ZIP64] = [0x06054b50, 0x02014b50, 1];

// {name: {voxels, shape}}; a member named `about` is parsed as JSON instead.
export async function readNpz(buffer) {
  const arrays = {};
  for (const member of members(buffer)) {
    const bytes = await member.bytes();
    const name = member.name.replace(/\.npy$/, "");
    const array = readNpy(bytes);
    arrays[name] = name === "about" ? JSON.parse(new TextDecoder().decode(array.voxels)) : array;
  }
  return arrays;
}

function* members(buffer) {
  const view = new DataView(buffer);
  let end = buffer.byteLength - 22;
  while (end >= 0 && view.getUint32(end, true) !== END) end--;
  if (end < 0) throw new Error("the server sent no npz file");
  let at = view.getUint32(end + 16, true);
  for (let count = view.getUint16(end + 10, true); count > 0; count--) {
    if (view.getUint32(at, true) !== ENTRY) throw new Error("the npz file is damaged");
    const [nameLength, extraLength] = [view.getUint16(at + 28, true), view.getUint16(at + 30, true)];
    const size = entrySizes(view, at, at + 46 + nameLength, extraLength);
    const name = new TextDecoder().decode(new Uint8Array(buffer, at + 46, nameLength));
    const deflated = view.getUint16(at + 10, true) === 8;
    const data = size.offset + 30 + view.getUint16(size.offset + 26, true) + view.getUint16(size.offset + 28, true);
    const packed = buffer.slice(data, data + size.packed);
    yield { name, bytes: () => (deflated ? inflate(packed) : Promise.resolve(packed)) };
    at += 46 + nameLength + extraLength + view.getUint16(at + 32, true);
  }
}

// Sizes of 2^32 - 1 stand for those in the zip64 field, in this order.
function entrySizes(view, at, extra, length) {
  const plain = [view.getUint32(at + 24, true), view.getUint32(at + 20, true), view.getUint32(at + 42, true)];
  for (let next = extra; next < extra + length; next += 4 + view.getUint16(next + 2, true)) {
    if (view.getUint16(next, true) !== ZIP64) continue;
    let field = next + 4;
    plain.forEach((size, i) => {
      if (size !== 0xffffffff) return;
      plain[i] = Number(view.getBigUint64(field, true));
      field += 8;
    });
  }
  return { packed: plain[1], offset: plain[2] };
}

const inflate = (packed) =>
  new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate-raw"))).arrayBuffer();

function readNpy(buffer) {
  const view = new DataView(buffer);
  const long = view.getUint8(6) > 1;
  const start = (long ? 12 : 10) + (long ? view.getUint32(8, true) : view.getUint16(8, true));
  const head = new TextDecoder("latin1").decode(new Uint8Array(buffer, 10, start - 10));
  const [, order, kind] = /'descr': *'([<>|=])(\w\d+)'/.exec(head) ?? [];
  const shape = (/'shape': *\(([^)]*)\)/.exec(head)?.[1] ?? "").split(",").filter((n) => n.trim()).map(Number);
  const Type = TYPES[kind];
  if (!Type || /'fortran_order': *True/.test(head)) throw new Error(`this page cannot read arrays of type ${kind}`);
  const bytes = new Uint8Array(buffer.slice(start));
  const width = Type.BYTES_PER_ELEMENT;
  if (order === ">") for (let at = 0; at < bytes.length; at += width) bytes.subarray(at, at + width).reverse();
  const voxels = new Type(bytes.buffer);
  return { voxels: /8$/.test(kind) && kind !== "f8" ? Float64Array.from(voxels, Number) : voxels, shape };
}
