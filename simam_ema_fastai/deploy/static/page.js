'use strict'
// The service's page. Every text from outside, class names and file names among them, goes in as text, never as markup.
const $ = (id) => document.getElementById(id)
const make = (tag, className = '', text = '') =>
  Object.assign(document.createElement(tag), { className, textContent: text })
const makeButton = (className, text, action) => {
  const button = Object.assign(make('button', className, text), { type: 'button' })
  button.addEventListener('click', action)
  return button
}
const percent = (p) => (100 * p).toFixed(1) + '\u2009%'
const mebibytes = (n) => (n / 2 ** 20).toFixed(1) + ' MiB'

let token = ''
let about = null // what GET /model says
let waiting = 0 // images that are chosen and not read yet
const cards = new Map() // by their elements: file, result, and view, where the image is

// Aloud, and where something is wrong, for the eye too.
const setStatus = (text, wrong = false) => {
  $('status').textContent = text
  $('trouble').textContent = wrong ? text : ''
  $('trouble').hidden = !wrong
}

// --- talking to the service

const gone = 'The service does not answer: it was stopped, or cannot be reached. Start it, then send the images again.'

const request = async (path, options = {}) => {
  const headers = token ? { Authorization: 'Bearer ' + token } : {}
  const response = await fetch(path, { ...options, headers }).catch(() => {
    throw new Error(gone)
  })
  const answer = await response.json().catch(() => ({ error: 'The answer of the service cannot be read.' }))
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
  showModel()
  if (locked) $('files').focus()
}

const showModel = () => {
  const some = about.classes.slice(0, 4).join(', ')
  $('known').textContent = `${about.classes.length} classes: ${some}${about.classes.length > 4 ? ', …' : ''}`
  $('classes').replaceChildren(...about.classes.map((name) => make('li', '', name)))
  const secret = token ? ' -H "Authorization: Bearer $SIMAM_EMA_TOKEN"' : ''
  $('curl').textContent = `curl${secret} -F files=@image.jpg '${new URL('predict?k=3', location.href)}'`
  for (const gate of about.gates.length ? ['none', ...about.gates] : []) {
    const label = make('label')
    label.append(Object.assign(make('input'), { type: 'radio', name: 'gate', value: gate, checked: gate === 'none' }))
    label.append(gate)
    $('gates').append(label)
  }
}

const gateOf = () => document.querySelector('[name=gate]:checked')?.value ?? 'none'

const predict = async (batch, maps, tries = 3) => {
  const [first] = batch
  if (first.size > about.limits.body) {
    const text = `This file has ${mebibytes(first.size)}; the service takes ${mebibytes(about.limits.body)}.`
    throw Object.assign(new Error(text), { status: 413 })
  }
  const form = new FormData()
  for (const f of batch) {
    try {
      await f.slice(0, 1).arrayBuffer()
    } catch {
      throw Object.assign(new Error(`${f.name} cannot be read any more: it was moved or changed.`), { status: 422 })
    }
    form.append('files', f, f.name || 'image')
  }
  try {
    return (await request(`predict?k=5&maps=${maps}`, { method: 'POST', body: form })).results
  } catch (e) {
    if (e.status !== 503 || !(e.wait <= 10) || !tries) throw e
    setStatus(e.message + ' Trying again …')
    await new Promise((done) => setTimeout(done, 1000 * e.wait))
    return predict(batch, maps, tries - 1)
  }
}

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

// --- gate maps over an image

// The shares of an image's width and height that the network sees, around the center; above 1 where it is padded.
const visibleShares = (width, height) => {
  const sides = [width, height]
  const scales = sides.map((side, i) => side / about.resize[i])
  const both = { crop: Math.min(...scales), pad: Math.max(...scales) }[about.method]
  return sides.map((side, i) => ((both ?? scales[i]) * about.size[i]) / side)
}

const placeMaps = (view) => {
  const image = view.querySelector('.image')
  if (!image?.naturalWidth) return
  const [width, height] = visibleShares(image.naturalWidth, image.naturalHeight)
  for (const heat of view.querySelectorAll('.heat')) {
    heat.style.width = 100 * width + '%'
    heat.style.height = 100 * height + '%'
  }
}

const addMaps = ({ view }, maps) => {
  for (const map of maps) {
    const [low, high] = map.scale
    const heat = Object.assign(make('img', 'heat'), { alt: map.gate + ' map', src: map.png })
    const caption = make('figcaption', '', `${map.gate}: ${map.low.toFixed(2)} to ${map.high.toFixed(2)} on `)
    const range = make('span', 'range', String(low))
    const scale = make('span', 'scale')
    const part = make('span')
    part.style.left = (100 * (map.low - low)) / (high - low) + '%'
    part.style.width = (100 * (map.high - map.low)) / (high - low) + '%'
    heat.dataset.gate = caption.dataset.gate = map.gate
    scale.append(part)
    range.append(scale, String(high))
    caption.append(range)
    view.append(heat)
    view.parentElement.append(caption)
  }
  placeMaps(view)
}

const showMaps = () => {
  const gate = gateOf()
  $('opacity').hidden = gate === 'none'
  for (const heat of document.querySelectorAll('.heat')) {
    heat.hidden = heat.dataset.gate !== gate
    heat.style.opacity = $('strength').value / 100
  }
  for (const caption of document.querySelectorAll('figcaption')) caption.hidden = caption.dataset.gate !== gate
}

// Ask for the maps of images that were answered without.
const fetchMaps = async () => {
  if (gateOf() === 'none') return
  const lacking = [...cards.values()].filter((card) => card.view && !card.result.maps.length)
  const byFile = new Map(lacking.map((card) => [card.file, card]))
  let done = 0
  try {
    for (const batch of inBatches([...byFile.keys()])) {
      if (byFile.size > 1) setStatus(`Gate maps: ${done} of ${byFile.size}`)
      const results = await predict(batch, true)
      results.forEach((result, i) => {
        const card = byFile.get(batch[i])
        card.result.maps = result.maps
        addMaps(card, result.maps)
      })
      done += batch.length
      showMaps()
    }
    if (byFile.size) setStatus(`Gate maps of ${gateOf()} are shown.`)
  } catch (e) {
    setStatus(e.message, true)
  }
}

// --- cards with results

const imageView = (card) => {
  const figure = make('figure')
  const view = (card.view = makeButton('view', '', () => {
    view.setAttribute('aria-expanded', view.closest('article').classList.toggle('open'))
  }))
  const image = Object.assign(make('img', 'image'), { alt: card.result.name, src: URL.createObjectURL(card.file) })
  view.setAttribute('aria-expanded', 'false')
  image.addEventListener('load', () => {
    URL.revokeObjectURL(image.src)
    placeMaps(view)
  })
  image.addEventListener('error', () => {
    // a format that this browser cannot show
    figure.remove()
    card.view = null
  })
  view.append(image)
  figure.append(view)
  addMaps(card, card.result.maps)
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

const remove = (article) => {
  const next = (article.nextElementSibling ?? article.previousElementSibling)?.querySelector('.remove')
  cards.delete(article)
  article.remove()
  showCount()
  ;(next ?? $('files')).focus()
}

// Add a card above `next`, the first card of what was sent before. `again`: files that can be sent again.
const addCard = (file, result, next, again) => {
  const article = make('article', 'card')
  const head = make('header')
  const card = { file, result, view: null }
  const close = makeButton('remove', '×', () => remove(article))
  close.setAttribute('aria-label', `Remove ${result.name}`)
  head.append(make('h2', '', result.name), close)
  article.append(head)
  $('results').insertBefore(article, next)
  cards.set(article, card)
  if (result.error) {
    article.append(make('p', 'wrong', result.error))
    if (again) article.append(makeButton('plain small', 'Send again', () => {
      remove(article)
      enqueue(again)
    }))
    return
  }
  const columns = make('div', 'columns')
  if (result.unsure) article.append(make('p', 'wrong', 'Unsure: no class is likely enough.'))
  columns.append(imageView(card), classList(result.classes))
  article.append(columns)
}

const showCount = () => {
  const results = [...cards.values()].map((card) => card.result)
  const read = results.filter((result) => !result.error).length
  const all = waiting + results.reduce((n, result) => n + (result.files ?? 1), 0)
  $('count').textContent = `${waiting ? 'Reading … ' : ''}${read} of ${all} read`
  $('tools').hidden = !all
  $('overlay').hidden = !about.gates.length || !read
  $('results').classList.toggle('many', cards.size > 2)
}

// --- sending a selection

const summary = (files, answered, notes) => {
  const parts = notes.slice(0, 3).map((note) => note.replace(/[.]$/, ''))
  if (files.length > 1) parts.unshift(`${answered} of ${files.length} images were read`)
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
    setStatus('Reading …' + (batch.length < files.length ? ` ${tried} of ${files.length}` : ''))
    try {
      const results = await predict(batch, gateOf() !== 'none')
      results.forEach((result, i) => addCard(batch[i], result, next))
      notes.push(...results.map((result) => result.error).filter(Boolean))
      answered += results.filter((result) => !result.error).length
      showMaps()
      const [{ name, classes }] = results
      if (files.length === 1 && answered) notes.push(`${name}: ${classes[0].label}, ${percent(classes[0].prob)}`)
    } catch (e) {
      const passes = [413, 422, 500].includes(e.status)
      if (!passes) batch.push(...batches.splice(0).flat()) // the next would fare no better
      const names = batch.slice(0, 3).map((f) => f.name || 'image').join(', ')
      const name = batch.length > 3 ? `${names} and ${batch.length - 3} more` : names
      addCard(batch[0], { name, error: e.message, maps: [], files: batch.length }, next, passes ? null : batch)
      notes.push(e.message)
    }
    tried += batch.length
    waiting -= batch.length
    showCount()
  }
  setStatus(summary(files, answered, notes))
  $('results').removeAttribute('aria-busy')
}

let queue = Promise.resolve() // one selection after the other
const enqueue = (files) => {
  files = [...files]
  waiting += files.length
  showCount()
  queue = queue.then(() => send(files))
}

// --- what becomes of the answers

const quoted = (value) => (/[",\r\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : value)

// One row per image, in the order of the page, with the columns of `simam_ema predict --out`.
const csv = () => {
  const results = [...$('results').children].map((article) => cards.get(article).result)
  const k = Math.max(1, ...results.map((result) => result.classes?.length ?? 0))
  const numbers = Array.from({ length: k }, (_, i) => i + 1)
  const head = ['item', 'label', 'prob', ...numbers.flatMap((i) => [`label${i}`, `prob${i}`]), 'error']
  const rows = results.map((result) => {
    const [best] = result.classes ?? []
    const named = numbers.flatMap((_, i) => [result.classes?.[i]?.label ?? '', result.classes?.[i]?.prob ?? ''])
    const answer = best ? [result.unsure ? 'unsure' : best.label, best.prob] : ['', '']
    return [result.name, ...answer, ...named, result.error ?? '']
  })
  return [head, ...rows].map((row) => row.map(quoted).join(',')).join('\n') + '\n'
}

const download = () => {
  const url = URL.createObjectURL(new Blob([csv()], { type: 'text/csv' }))
  Object.assign(make('a'), { href: url, download: 'answers.csv' }).click()
  setTimeout(() => URL.revokeObjectURL(url), 10000)
}

const copy = async () => {
  getSelection().selectAllChildren($('curl')) // what remains where the clipboard is not to be had
  try {
    await navigator.clipboard.writeText($('curl').textContent)
    setStatus('Copied.')
    $('copy').textContent = 'Copied'
    setTimeout(() => ($('copy').textContent = 'Copy'), 2000)
  } catch {
    setStatus('It is selected: copy it with the keyboard.')
  }
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
$('csv').addEventListener('click', download)
$('copy').addEventListener('click', copy)
$('clear').addEventListener('click', () => {
  for (const article of [...cards.keys()]) remove(article)
  setStatus('All images were removed.')
})
$('overlay').addEventListener('input', () => {
  showMaps()
  queue = queue.then(fetchMaps)
})
$('access').addEventListener('submit', (e) => {
  e.preventDefault()
  token = $('token').value
  $('token').value = ''
  enter()
})
enter()
