// A WebGL 2 viewer for one textured GLB that is embedded in the page as base64: no library, no network, works from file://.
// Reads what t3d.export.meshes writes: one primitive, POSITION, NORMAL, TEXCOORD_0 or COLOR_0, indices, one base colour image.
'use strict';
(async function () {
  const pane = document.getElementById('pane');
  const canvas = pane.querySelector('canvas');
  const hint = document.getElementById('hint');
  const gl = canvas.getContext('webgl2', { antialias: true, preserveDrawingBuffer: true });
  if (!gl) { hint.textContent = 'This browser has no WebGL 2: open mesh.glb in another viewer.'; return; }

  // ---- the GLB: 12 byte header, then chunks of (length, type, bytes); the first is JSON, the second binary
  const text = atob(document.getElementById('glb').textContent.trim());
  const bytes = Uint8Array.from(text, c => c.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const jsonLength = view.getUint32(12, true);
  const gltf = JSON.parse(new TextDecoder().decode(bytes.subarray(20, 20 + jsonLength)));
  const binary = 20 + jsonLength + 8;
  const kinds = { 5121: Uint8Array, 5123: Uint16Array, 5125: Uint32Array, 5126: Float32Array };
  const widths = { SCALAR: 1, VEC2: 2, VEC3: 3, VEC4: 4 };
  function read(index) {
    const accessor = gltf.accessors[index], source = gltf.bufferViews[accessor.bufferView];
    const offset = binary + (source.byteOffset || 0) + (accessor.byteOffset || 0);
    const Kind = kinds[accessor.componentType], count = accessor.count * widths[accessor.type];
    return new Kind(bytes.buffer.slice(offset, offset + count * Kind.BYTES_PER_ELEMENT));
  }
  const primitive = gltf.meshes[0].primitives[0], attributes = primitive.attributes;
  const position = read(attributes.POSITION), normal = read(attributes.NORMAL), index = Uint32Array.from(read(primitive.indices));
  const centre = [0, 0, 0];
  let radius = 0;
  for (let a = 0; a < 3; a++) {
    let low = Infinity, high = -Infinity;
    for (let i = a; i < position.length; i += 3) { low = Math.min(low, position[i]); high = Math.max(high, position[i]); }
    centre[a] = (low + high) / 2; radius = Math.hypot(radius, (high - low) / 2);
  }

  // ---- program
  function shader(kind, source) {
    const s = gl.createShader(kind);
    gl.shaderSource(s, source); gl.compileShader(s);
    if (!gl.getShaderParameter(s, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(s));
    return s;
  }
  const program = gl.createProgram();
  gl.attachShader(program, shader(gl.VERTEX_SHADER, `#version 300 es
    layout(location=0) in vec3 position; layout(location=1) in vec3 normal; layout(location=2) in vec2 uv; layout(location=3) in vec4 color;
    uniform mat4 clip; out vec3 n; out vec2 st; out vec4 tint;
    void main() { n = normal; st = uv; tint = color; gl_Position = clip * vec4(position, 1.0); }`));
  gl.attachShader(program, shader(gl.FRAGMENT_SHADER, `#version 300 es
    precision highp float; in vec3 n; in vec2 st; in vec4 tint; uniform sampler2D image; uniform int mode; uniform vec3 eye; out vec4 result;
    vec3 srgb(vec3 c) { return mix(12.92 * c, 1.055 * pow(max(c, 0.0031308), vec3(1.0 / 2.4)) - 0.055, step(0.0031308, c)); }  // vertex colours are linear
    void main() {
      vec3 m = normalize(n), base = texture(image, st).rgb * srgb(tint.rgb);
      vec3 lamp = normalize(eye + vec3(0.0, 0.6, 0.0));
      float light = 0.65 + 0.12 * m.y + 0.35 * max(dot(m, lamp), 0.0);
      result = vec4(mode == 0 ? base * light : mode == 1 ? base : 0.5 + 0.5 * m, 1.0);
    }`));
  gl.linkProgram(program); gl.useProgram(program);
  function attribute(place, data, width) {
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer()); gl.bufferData(gl.ARRAY_BUFFER, data, gl.STATIC_DRAW);
    gl.enableVertexAttribArray(place);
    const bytewise = data instanceof Uint8Array;
    gl.vertexAttribPointer(place, width, bytewise ? gl.UNSIGNED_BYTE : gl.FLOAT, bytewise, 0, 0);
  }
  attribute(0, position, 3); attribute(1, normal, 3);
  if (attributes.TEXCOORD_0 !== undefined) attribute(2, read(attributes.TEXCOORD_0), 2);
  gl.vertexAttrib4f(3, 1, 1, 1, 1);
  if (attributes.COLOR_0 !== undefined) attribute(3, read(attributes.COLOR_0), widths[gltf.accessors[attributes.COLOR_0].type]);
  gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer()); gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, index, gl.STATIC_DRAW);

  // ---- texture: glTF puts v = 0 at the first row, and so does an unflipped upload
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, 1, 1, 0, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array([255, 255, 255, 255]));
  if (gltf.images) {
    const source = gltf.bufferViews[gltf.images[0].bufferView], start = binary + (source.byteOffset || 0);
    const blob = new Blob([bytes.subarray(start, start + source.byteLength)], { type: gltf.images[0].mimeType });
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, await createImageBitmap(blob, { colorSpaceConversion: 'none' }));
    gl.generateMipmap(gl.TEXTURE_2D);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.LINEAR_MIPMAP_LINEAR);
  }

  // ---- camera: orbit about the centre, front (+z) first, y up
  let azimuth = 0.5, elevation = 0.3, distance = 3.0, mode = 0, spin = true, drag = null, pinch = 0;
  const touches = new Map();
  function draw() {
    const width = canvas.clientWidth, height = canvas.clientHeight, ratio = Math.min(devicePixelRatio || 1, 2);
    if (canvas.width !== Math.round(width * ratio)) { canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio); }
    gl.viewport(0, 0, canvas.width, canvas.height);
    gl.clearColor(0.914, 0.929, 0.945, 1); gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT); gl.enable(gl.DEPTH_TEST);
    const ca = Math.cos(azimuth), sa = Math.sin(azimuth), ce = Math.cos(elevation), se = Math.sin(elevation);
    const back = [ce * sa, se, ce * ca], right = [ca, 0, -sa], up = [-se * sa, ce, -se * ca];
    const far = distance * radius, focal = 1 / Math.tan(0.35), near = Math.max(far - 2 * radius, 0.02 * radius), end = far + 2 * radius;
    const sx = focal * Math.min(1, height / width), sy = focal * Math.min(1, width / height);
    const p = (end + near) / (near - end), q = 2 * end * near / (near - end);
    const eye = back.map((b, i) => centre[i] + far * b);
    const m = new Float32Array(16), dot = v => -(v[0] * eye[0] + v[1] * eye[1] + v[2] * eye[2]);
    for (let c = 0; c < 3; c++) { m[4 * c] = sx * right[c]; m[4 * c + 1] = sy * up[c]; m[4 * c + 2] = p * back[c]; m[4 * c + 3] = -back[c]; }
    m[12] = sx * dot(right); m[13] = sy * dot(up); m[14] = p * dot(back) + q; m[15] = -dot(back);
    gl.uniformMatrix4fv(gl.getUniformLocation(program, 'clip'), false, m);
    gl.uniform3fv(gl.getUniformLocation(program, 'eye'), back);
    gl.uniform1i(gl.getUniformLocation(program, 'mode'), mode);
    gl.drawElements(gl.TRIANGLES, index.length, gl.UNSIGNED_INT, 0);
  }
  function tick() { if (spin) { azimuth += 0.006; draw(); requestAnimationFrame(tick); } }
  function stop() { spin = false; }
  function zoom(factor) { distance = Math.min(12, Math.max(1.05, distance * factor)); stop(); draw(); }
  canvas.addEventListener('pointerdown', e => { touches.set(e.pointerId, e); canvas.setPointerCapture(e.pointerId); drag = e; pinch = 0; stop(); });
  canvas.addEventListener('pointerup', e => { touches.delete(e.pointerId); drag = null; });
  canvas.addEventListener('pointercancel', e => { touches.delete(e.pointerId); drag = null; });
  canvas.addEventListener('pointermove', e => {
    if (!touches.has(e.pointerId)) return;
    touches.set(e.pointerId, e);
    if (touches.size === 2) {
      const [a, b] = [...touches.values()], spread = Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY);
      if (pinch) zoom(pinch / spread);
      pinch = spread;
    } else if (drag) {
      azimuth -= 0.008 * (e.clientX - drag.clientX);
      elevation = Math.min(1.55, Math.max(-1.55, elevation + 0.008 * (e.clientY - drag.clientY)));
      drag = e; draw();
    }
  });
  canvas.addEventListener('wheel', e => { e.preventDefault(); zoom(Math.exp(0.001 * e.deltaY)); }, { passive: false });
  pane.querySelectorAll('button[data-mode]').forEach(button => button.addEventListener('click', () => {
    mode = Number(button.dataset.mode);
    pane.querySelectorAll('button[data-mode]').forEach(b => b.setAttribute('aria-pressed', b === button));
    draw();
  }));
  addEventListener('resize', draw);
  hint.textContent = (index.length / 3).toLocaleString('en') + ' faces. Drag to turn, wheel or pinch to zoom.';
  draw(); tick();
  pane.dataset.ready = 'yes';
})().catch(error => { document.getElementById('hint').textContent = 'The 3D view failed: ' + error.message; });
