// NIfTI-1 files from arrays with x running fastest: for NiiVue to show, and to hand in.

const TYPES = [
  [2, Uint8Array], [4, Int16Array], [8, Int32Array], [16, Float32Array], [64, Float64Array],
  [256, Int8Array], [512, Uint16Array], [768, Uint32Array],
];
const HEADER = 352;

// shape, spacing and origin as [x, y, z]; a fourth length counts channels.
export function makeNifti(voxels, shape, spacing, origin = [0, 0, 0]) {
  const bytes = new Uint8Array(HEADER + voxels.byteLength);
  const view = new DataView(bytes.buffer);
  view.setInt32(0, 348, true);
  const lengths = [...shape, 1].slice(0, 4);
  [lengths[3] > 1 ? 4 : 3, ...lengths, 1, 1, 1].forEach((n, i) => view.setInt16(40 + 2 * i, n, true));
  view.setInt16(70, TYPES.find(([, Type]) => voxels instanceof Type)[0], true);
  view.setInt16(72, 8 * voxels.BYTES_PER_ELEMENT, true);
  [1, ...spacing, 1].forEach((n, i) => view.setFloat32(76 + 4 * i, n, true));
  view.setFloat32(108, HEADER, true); // where the voxels begin
  view.setFloat32(112, 1, true);
  view.setUint8(123, 2); // millimetre
  view.setInt16(254, 2, true); // the affine below is "aligned"
  for (let axis = 0; axis < 3; axis++) {
    view.setFloat32(280 + 20 * axis, spacing[axis], true);
    view.setFloat32(292 + 16 * axis, origin[axis], true);
  }
  bytes.set([0x6e, 0x2b, 0x31, 0], 344);
  bytes.set(new Uint8Array(voxels.buffer, voxels.byteOffset, voxels.byteLength), HEADER);
  return bytes;
}

// Gzipped labels of a patch in their place in the volume, in millimetre as the server expects.
export function labelFile(labels, frame) {
  const spacing = [...frame.spacing].reverse().map((um) => um / 1000);
  const origin = [...frame.box.offset].reverse().map((n, axis) => n * spacing[axis]);
  const file = makeNifti(labels, [...frame.box.shape].reverse(), spacing, origin);
  return new Response(new Blob([file]).stream().pipeThrough(new CompressionStream("gzip"))).blob();
}
