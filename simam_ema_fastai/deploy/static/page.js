'use strict'
// The service's page. Every text from outside, class names and file names among them, goes in as text, never as markup.
const $ = (id) => document.getElementById(id)
const make = (tag, className = '', text = '') =>
  Object.assign(document.createElement(tag), { className, textContent: text })
const percent = (p) => (100 * p).toFixed(1) + '\u2009%'
const mebibytes = (n) => (n / 2 ** 20).toFixed(1) + ' MiB'

let token = ''
let about = null // what GET /model says

const setStatus = (text, wrong = false) => {
  $('status').textContent = text
  $('status').classList.toggle('wrong', wrong)
}

// --- talking to the service

const request = async (path, options = {}) => {
  const headers = token ? { Authorization: 'Bearer ' + token } : {}
  const response = await fetch(path, { ...options, headers }).catch(() => {
    throw new Error('The service cannot be reached, or a file cannot be read.')
  })
  const answer = await response.json().catch(() => ({ error: 'the answer of the service cannot be read' }))
  if (response.ok) return answer
  const wait = Number(response.headers.get('Retry-After'))
  throw Object.assign(new Error(answer.error), { status: response.status, wait })
}

const enter = async () => {
  try {
    about = await request('model')
  } catch (e) {
    if (e.status !== 401) return setStatus(e.message, true)
    if (token) setStatus('The service does not know this token.', true)
    token = ''
    $('access').hidden = false
    $('token').focus()
    return
  }
  const locked = !$('access').hidden
  $('access').hidden = true
  $('desk').hidden = false
  setStatus('')
  $('about').textContent = `${about.name}: ${about.classes.length} classes, images of ${about.size.join(' × ')}`
  for (const gate of about.gates.length ? ['none', ...about.gates] : []) addGate(gate, gate === about.gates.at(-1))
  if (locked) $('files').focus()
}

const predict = async (batch, tries = 3) => {
  const [first] = batch
  if (first.size > about.limits.body) {
    const text = `This file has ${mebibytes(first.size)}; the service takes ${mebibytes(about.limits.body)}.`
    throw Object.assign(new Error(text), { status: 413 })
  }
  const form = new FormData()
  for (const f of batch) form.append('files', f, f.name || 'image')
  try {
    return (await request('predict?k=5&maps=' + (about.gates.length > 0), { method: 'POST', body: form })).results
  } catch (e) {
    if (e.status !== 503 || !(e.wait <= 10) || !tries) throw e
    setStatus(e.message + ' Trying again …')
    await new Promise((done) => setTimeout(done, 1000 * e.wait))
    return predict(batch, tries - 1)
  }
}

// --- gate maps over an image

const addGate = (gate, checked) => {
  const label = make('label')
  label.append(Object.assign(make('input'), { type: 'radio', name: 'gate', value: gate, checked }), gate)
  $('gates').append(label)
}

const showMaps = () => {
  const gate = document.querySelector('[name=gate]:checked')?.value
  for (const heat of document.querySelectorAll('.heat')) {
    heat.hidden = heat.dataset.gate !== gate
    heat.style.opacity = $('strength').value / 100
  }
  for (const caption of document.querySelectorAll('figcaption')) caption.hidden = caption.dataset.gate !== gate
}

// The shares of an image's width and height that the network sees, around the center; above 1 where it is padded.
const visibleShares = (width, height) => {
  const sides = [width, height]
  const scales = sides.map((side, i) => side / about.resize[i])
  const both = { crop: Math.min(...scales), pad: Math.max(...scales) }[about.method]
  return sides.map((side, i) => ((both ?? scales[i]) * about.size[i]) / side)
}

// --- cards with results

const imageView = (file, result) => {
  const figure = make('figure')
  const view = make('div', 'view')
  const image = Object.assign(make('img', 'image'), { alt: result.name, src: URL.createObjectURL(file) })
  image.addEventListener('load', () => {
    URL.revokeObjectURL(image.src)
    const [width, height] = visibleShares(image.naturalWidth, image.naturalHeight)
    for (const heat of view.querySelectorAll('.heat')) {
      heat.style.width = 100 * width + '%'
      heat.style.height = 100 * height + '%'
    }
  })
  image.addEventListener('error', () => {
    // a format that this browser cannot show
    image.remove()
    if (!result.maps.length) figure.remove()
  })
  view.append(image)
  figure.append(view)
  for (const map of result.maps) {
    const heat = Object.assign(make('img', 'heat'), { alt: map.gate + ' map', src: map.png })
    const caption = make('figcaption', '', `Weights from ${map.gate}: `)
    const range = make('span', 'range', map.low.toFixed(3))
    heat.dataset.gate = caption.dataset.gate = map.gate
    range.append(make('span', 'scale'), map.high.toFixed(3))
    caption.append(range)
    view.append(heat)
    figure.append(caption)
  }
  return figure
}

const classList = (classes) => {
  const list = make('ol', 'classes')
  for (const c of classes) {
    const row = make('li')
    const bar = make('span', 'bar')
    const fill = make('span')
    fill.style.width = 100 * c.prob + '%'
    bar.append(fill)
    bar.setAttribute('aria-hidden', 'true')
    row.append(make('span', 'label', c.label), make('span', '', percent(c.prob)), bar)
    list.append(row)
  }
  return list
}

// Add a card above `next`, the first card of what was sent before.
const addCard = (file, result, next) => {
  const card = make('article', 'card')
  card.append(make('h2', '', result.name))
  $('results').insertBefore(card, next)
  if (result.error) return card.append(make('p', 'wrong', result.error))
  const columns = make('div', 'columns')
  if (result.unsure) card.append(make('p', 'wrong', 'Unsure: no class is likely enough.'))
  columns.append(imageView(file, result), classList(result.classes))
  card.append(columns)
}

// --- sending a selection

// Batches of as many images and bytes as a request may have.
const inBatches = (files) => {
  const batches = []
  let room = 0
  for (const f of files) {
    const size = f.size + 4 * f.name.length + 1024 // with what a form puts around it
    if (size > room || batches.at(-1).length === about.limits.images) {
      batches.push([])
      room = about.limits.body
    }
    batches.at(-1).push(f)
    room -= size
  }
  return batches
}

const summary = (files, answered, notes) => {
  const parts = notes.slice(0, 3).map((note) => note.replace(/[.]$/, ''))
  if (files.length > 1) parts.unshift(`${answered} of ${files.length} images were classified`)
  return parts.join('. ') + (notes.length > 3 ? ' …' : '')
}

const send = async (files) => {
  if (!files.length) return setStatus('There is no image in that.', true)
  const next = $('results').firstChild
  const notes = []
  const batches = inBatches(files)
  let tried = 0
  let answered = 0
  $('results').setAttribute('aria-busy', 'true')
  while (batches.length) {
    const batch = batches.shift()
    setStatus('Classifying …' + (batch.length < files.length ? ` ${tried} of ${files.length}` : ''))
    try {
      const results = await predict(batch)
      results.forEach((result, i) => addCard(batch[i], result, next))
      notes.push(...results.map((result) => result.error).filter(Boolean))
      answered += results.filter((result) => !result.error).length
      showMaps()
      const [{ name, classes }] = results
      if (files.length === 1 && answered) notes.push(`${name}: ${classes[0].label}, ${percent(classes[0].prob)}`)
    } catch (e) {
      if (![413, 422, 500].includes(e.status)) batch.push(...batches.splice(0).flat()) // the next would fare no better
      const name = batch.map((f) => f.name || 'image').join(', ')
      addCard(batch[0], { name, error: e.message, maps: [] }, next)
      notes.push(e.message)
    }
    tried += batch.length
  }
  $('overlay').hidden = !document.querySelector('.heat')
  setStatus(summary(files, answered, notes), !answered)
  $('results').removeAttribute('aria-busy')
}

let queue = Promise.resolve() // one selection after the other
const enqueue = (files) => {
  files = [...files]
  queue = queue.then(() => send(files))
}

// --- the camera

const closeCamera = () => {
  for (const track of $('video').srcObject?.getTracks() ?? []) track.stop()
  $('video').srcObject = null
  if ($('viewfinder').open) $('viewfinder').close()
}

const openCamera = async () => {
  if (matchMedia('(pointer: coarse)').matches || !navigator.mediaDevices) return $('shot').click()
  try {
    $('video').srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: 'environment' } })
  } catch (e) {
    return setStatus('The camera cannot be used: ' + e.message, true)
  }
  $('viewfinder').showModal()
}

const takePhoto = () => {
  const video = $('video')
  const canvas = Object.assign(make('canvas'), { width: video.videoWidth, height: video.videoHeight })
  canvas.getContext('2d').drawImage(video, 0, 0)
  closeCamera()
  canvas.toBlob((blob) => enqueue([new File([blob], 'camera.jpg', { type: blob.type })]), 'image/jpeg', 0.95)
}

// --- what a user does

for (const kind of ['dragover', 'dragleave', 'drop']) {
  document.addEventListener(kind, (e) => {
    e.preventDefault()
    $('drop').classList.toggle('over', kind === 'dragover')
  })
}
document.addEventListener('drop', (e) => {
  if (about) enqueue(e.dataTransfer.files)
})
document.addEventListener('paste', (e) => {
  if (about && e.clipboardData.files.length) enqueue(e.clipboardData.files)
})
for (const id of ['files', 'shot']) {
  $(id).addEventListener('change', (e) => {
    if (e.target.files.length) enqueue(e.target.files)
    e.target.value = ''
  })
}
$('camera').addEventListener('click', openCamera)
$('shutter').addEventListener('click', takePhoto)
$('cancel').addEventListener('click', closeCamera)
$('viewfinder').addEventListener('close', closeCamera)
$('overlay').addEventListener('input', showMaps)
$('access').addEventListener('submit', (e) => {
  e.preventDefault()
  token = $('token').value
  $('token').value = ''
  enter()
})
enter()
