// The service's page, used as somebody would: the token, an image chosen by keyboard, the gate maps' switch and slider,
// a dropped image, the camera, a file that is not an image.
import { check } from './browser.mjs'
import fs from 'node:fs'

const { IMAGE, PHOTO, NO_IMAGE, MANY, LABEL, TOKEN } = process.env

await check(async ({ page, say, width, scheme, shoot }) => {
  const expect = async (what, check, ...args) => {
    try {
      await page.waitForFunction(check, { timeout: 20000, polling: 50 }, ...args)
    } catch {
      say(`${what}: ${await page.$eval('#status', (e) => e.innerText)}`)
    }
  }
  const cards = (n) =>
    expect(
      `${n} cards`,
      (n) => document.querySelectorAll('article').length === n && !document.querySelector('[aria-busy]'),
      n,
    )

  await expect('asks for the token', () => document.activeElement.id === 'token')
  await shoot('token')
  await page.keyboard.type('not the token at all')
  await page.keyboard.press('Enter')
  await expect('says that the token is wrong', () => /not know/.test(document.querySelector('#status').innerText))
  await page.keyboard.type(TOKEN)
  await page.keyboard.press('Enter')
  await expect('opens the desk', () => document.activeElement.id === 'files')
  await shoot('empty')

  await page.evaluate(() =>
    document.querySelector('#files').addEventListener(
      'click',
      (e) => {
        e.preventDefault()
        e.target.dataset.opened = true
      },
      { once: true },
    ),
  )
  await page.keyboard.press('Space')
  await expect('the key opens the files', () => document.querySelector('#files').dataset.opened)
  const choose = async (...files) => (await page.$('#files')).uploadFile(...files)
  await choose(IMAGE)
  await cards(1)
  await expect('names the class', (label) => document.querySelector('.classes li .label').innerText === label, LABEL)
  await expect('says it aloud', (label) => document.querySelector('#status').innerText.includes(label), LABEL)
  const bars = await page.$$eval('.bar span', (all) => all.map((b) => b.getBoundingClientRect().width))
  if (bars.length !== 5 || !bars.every((b, i) => b >= 0 && (!i || b <= bars[i - 1]))) say(`bars of ${bars}`)

  const heat = () =>
    page.$$eval('.heat', (all) =>
      all
        .filter((h) => !h.hidden && h.getBoundingClientRect().width > 20)
        .map((h) => [h.dataset.gate, h.naturalWidth > 0, Number(h.style.opacity)]),
    )
  const same = async (what, want) => {
    const got = JSON.stringify(await heat())
    if (got !== JSON.stringify(want)) say(`${what}: ${got}`)
  }
  await same('EMA first', [['EMA', true, 0.6]])
  const shares = await page.evaluate(() =>
    ['squish', 'crop', 'pad'].map((method) => {
      const kept = { ...about }
      Object.assign(about, { method, resize: [80, 80], size: [64, 64] })
      try {
        return visibleShares(200, 100).map((s) => s.toFixed(2))
      } finally {
        Object.assign(about, kept)
      }
    }),
  )
  if (JSON.stringify(shares) !== '[["0.80","0.80"],["0.40","0.80"],["0.80","1.60"]]')
    say(`the map covers ${JSON.stringify(shares)}`)
  await page.focus('[value=EMA]')
  await page.keyboard.press('ArrowUp')
  await same('SimAM by the arrow key', [['SimAM', true, 0.6]])
  await page.focus('#strength')
  await page.keyboard.press('Home')
  await same('the slider at its end', [['SimAM', true, 0]])
  await page.keyboard.press('End')
  await page.focus('[value=SimAM]')
  await page.keyboard.press('ArrowUp')
  await same('none', [])
  await page.keyboard.press('ArrowDown')
  await page.keyboard.press('ArrowDown')
  await page.$eval('#strength', (s) => {
    s.value = 60
    s.dispatchEvent(new Event('input', { bubbles: true }))
  })

  if (width > 1000 !== (scheme === 'light')) return shoot('one') // the rest once on the desktop, once on the phone

  await page.evaluate(async (name) => {
    const image = document.querySelector('.image'),
      data = new DataTransfer(),
      canvas = document.createElement('canvas')
    canvas.width = image.naturalWidth
    canvas.height = image.naturalHeight
    canvas.getContext('2d').drawImage(image, 0, 0)
    data.items.add(new File([await new Promise((done) => canvas.toBlob(done))], name, { type: 'image/png' }))
    document.dispatchEvent(new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true }))
  }, '<img src=x onerror=alert(1)>.png')
  await cards(2)
  await page.focus('#camera')
  await page.keyboard.press('Enter')
  await expect(
    'the camera runs',
    () => document.querySelector('#viewfinder').open && document.querySelector('#video').videoWidth > 0,
  )
  await page.keyboard.press('Enter')
  await cards(3)
  await expect(
    'the camera is off again',
    () => !document.querySelector('#viewfinder').open && !document.querySelector('#video').srcObject,
  )
  await choose(NO_IMAGE, PHOTO)
  await cards(5)
  await expect('says what is not an image', () => [...document.querySelectorAll('article .wrong')].length === 1)
  await shoot('full')

  const many = fs.readdirSync(MANY).sort()
  await page.evaluate(() => {
    const seen = (window.seen = [])
    new MutationObserver(() => seen.push(document.querySelector('#status').innerText)).observe(
      document.querySelector('#status'),
      { childList: true },
    )
  })
  await choose(...many.map((f) => `${MANY}/${f}`))
  await cards(25)
  await expect(
    'says how many were classified',
    () => document.querySelector('#status').innerText === '20 of 20 images were classified',
  )
  const progress = await page.evaluate(() => window.seen)
  if (!progress.includes('Classifying … 16 of 20')) say(`says how far it is: ${progress}`)
  const names = await page.$$eval('article h2', (all) => all.map((h) => h.innerText))
  if (String(names.slice(0, 20)) !== String(many)) say(`in their order: ${names}`)
  await choose(NO_IMAGE)
  await cards(26)
  await expect(
    'one that is not an image has a card too',
    () =>
      document.querySelector('article .wrong').innerText.includes('broken.png') &&
      document.querySelector('#status').classList.contains('wrong'),
  )
}, /status of (401|422)/)
