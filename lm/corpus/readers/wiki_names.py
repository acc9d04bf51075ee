"""Words of wikitext that differ by language: namespaces, redirects, disambiguation, sections of apparatus."""

import re


def _words(text: str) -> frozenset[str]:
    return frozenset(word.strip().lower() for word in text.replace("\n", ",").split(",") if word.strip())


FILE = _words("""file, image, media, datei, bild, fichier, archivo, imagen, immagine, ficheiro, arquivo, imagem, bestand,
    afbeelding, plik, grafika, файл, изображение, зображення, fil, soubor, súbor, dosya, resim, tiedosto, kuva, fájl, kép,
    fișier, imagine, fitxer, imatge, slika, датотека, слика, картинка, berkas, gambar, tập tin, hình, αρχείο, εικόνα,
    ファイル, 画像, 文件, 檔案, 档案, 图像, 圖像, 파일, 그림, ملف, صورة, پرونده, תמונה, קובץ, चित्र, ไฟล์, dosiero, fitxategi, pilt, attēls,
    vaizdas, datoteka, mynd, íomhá, ficheru, delwedd, চিত্র, படிமம்""")
CATEGORY = _words("""category, kategorie, catégorie, categoría, categoria, kategoria, категория, категорія, kategori, kategória,
    luokka, kategorija, категорија, thể loại, κατηγορία, カテゴリ, 分类, 分類, 분류, تصنيف, رده, קטגוריה, श्रेणी, หมวดหมู่, kategorio,
    categorie, kategooria, flokkur, catagóir, বিষয়শ্রেণী, பகுப்பு, катэгорыя""")
# Codes of wikis: a link [[fr:Titre]] stood for the same article in another language.
LANGUAGES = _words("""aa, ab, af, als, am, an, ang, ar, arc, ast, av, ay, az, ba, bar, bat-smg, be, be-x-old, bg, bh, bi, bn, bo,
    bpy, br, bs, bxr, ca, ceb, ch, co, cr, crh, cs, csb, cu, cv, cy, da, de, diq, dsb, dv, el, en, eml, eo, es, et, eu, ext, fa,
    ff, fi, fiu-vro, fj, fo, fr, frp, fur, fy, ga, gan, gd, gl, gn, got, gu, gv, ha, hak, haw, he, hi, hif, hr, hsb, ht, hu, hy,
    ia, id, ie, ig, ilo, io, is, it, iu, ja, jbo, jv, ka, kk, kl, km, kn, ko, krc, ks, ksh, ku, kv, kw, ky, la, lad, lb, lg, li,
    lij, lmo, ln, lo, lt, ltg, lv, map-bms, mdf, mg, mi, mk, ml, mn, mr, ms, mt, my, na, nah, nap, nds, nds-nl, ne, new, nl, nn,
    no, nov, nrm, nv, oc, om, or, os, pa, pam, pap, pdc, pi, pl, pms, pnb, pnt, ps, pt, qu, rm, rmy, rn, ro, roa-rup, roa-tara,
    ru, rw, sa, sah, sc, scn, sco, sd, se, sg, sh, si, simple, sk, sl, sm, sn, so, sq, sr, srn, ss, st, stq, su, sv, sw, szl, ta,
    te, tet, tg, th, ti, tk, tl, tn, to, tpi, tr, ts, tt, tum, tw, ty, udm, ug, uk, ur, uz, ve, vec, vi, vls, vo, wa, war, wo,
    wuu, xal, yi, yo, za, zea, zh, zh-classical, zh-min-nan, zh-yue, zu""")

_REDIRECTS = _words("""redirect, weiterleitung, redirection, redirección, redireccion, rinvia, rinvio, doorverwijzing, patrz,
    przekieruj, tam, redirecionamento, перенаправление, перенапр, перенаправлення, omdirigering, omdiriger, 転送, リダイレクト,
    重定向, 넘겨주기, تحويل, هدایت, تغییرمسیر, تغییر_مسیر, הפניה, ohjaus, uudelleenohjaus, átirányítás, yönlendirme, yönlendi̇rme,
    přesměruj, presmeruj, redirecteaza, đổi, alih, ανακατευθυνση, ανακατεύθυνση, виж, alidirektu, преусмери, preusmjeri,
    preusmeritev, peradresavimas, suunamine, birzuzendu, athsheoladh, tilvísun, redirecció, पुनर्प्रेषित, เปลี่ยนทาง, перанакіраванне""")
_REDIRECT = re.compile(r"\s*#\s*([^\s:\[\]]+)\s*(?:trang\s*)?:?\s*\[\[([^\[\]]+?)\]\]", re.IGNORECASE)


def redirect_target(text: str) -> str | None:
    """Return the title that a page's wikitext redirects to, None if it is no redirect."""
    match = _REDIRECT.match(text, 0, 2000)
    if not match or match[1].lower() not in _REDIRECTS:
        return None
    return match[2].partition("|")[0].strip(" :")


_DISAMBIGUATION = _words("""disambig, disambiguation, disambiguation page, disamb, dab, hndis, hndisambig, human name disambiguation,
    geodis, geo-dis, place name disambiguation, numberdis, number disambiguation, mathdab, mathematical disambiguation,
    airport disambiguation, airport disambig, biology disambiguation, call sign disambiguation, callsigndis,
    caselaw disambiguation, chinese title disambiguation, church disambiguation, county dis, genus disambiguation,
    hospital disambiguation, hospitaldis, letter-number combination disambiguation, letter-number combination disambig,
    military unit disambiguation, mil-unit-dis, music disambiguation, opus disambiguation, phonetics disambiguation,
    road disambiguation, roaddis, schooldis, school disambiguation, species latin name disambiguation,
    species latin name abbreviation disambiguation, station disambiguation, synagogue disambiguation,
    taxonomic authority disambiguation, taxonomy disambiguation, wp disambig, latin name disambiguation,
    disambig-cleanup, disambiguation cleanup, tla, 2cc, 3cc, 4cc, lncdab,
    begriffsklärung, bks, homonymie, desambiguación, desambiguacion, disambigua, dp, dpintro, doorverwijspagina,
    ujednoznacznienie, desambiguação, неоднозначность, многозначность, disambig-cat, förgrening, gren, aimai, 曖昧さ回避, 消歧义, 消歧義,
    неоднозначність, багатозначність, rozcestník, anlam ayrımı, anlam ayrım, 동음이의, توضيح, ابهام‌زدایی, פירושונים, täsmennyssivu,
    egyért, flertydig, peker, dezambiguizare, desambiguació, trang định hướng, αποσαφήνιση, пояснение, apartigilo, argipen,
    rozlišovacia stránka, razdvojba, вишезначна одредница, razločitev, nuorodinis straipsnis, nozīmju atdalīšana,
    täpsustuslehekülg, homônimos, неадназначнасць, homonymie commune""")
_TEMPLATE_NAME = re.compile(r"\{\{\s*(?:template:)?([^{}|<\n]{2,70}?)\s*(?=\||\}\}|\n)", re.IGNORECASE)


def disambiguation(text: str) -> str | None:
    """Return what marks a page's wikitext as a disambiguation page: a template's name; None if nothing does."""
    if "__DISAMBIG__" in text:
        return "__DISAMBIG__"
    for match in _TEMPLATE_NAME.finditer(text):
        if (name := match[1].replace("_", " ").lower()) in _DISAMBIGUATION:
            return name
    return None


# Headings of sections that hold references and links, not prose.
APPARATUS = _words("""references, external links, external link, see also, notes, further reading, footnotes, citations, sources, notes and references,
    references and notes, references and further reading, notes and citations, explanatory notes, works cited, cited sources, general references, cited references, references cited,
    sources and further reading, bibliography and references, references and bibliography, references and sources, primary sources, secondary sources, citations and notes,
    notes and sources, sources and references, footnotes and references, endnotes, further information, web links, links, gallery,
    literature cited, references and external links, external references, external links and references, related links,
    einzelnachweise, weblinks, literatur, siehe auch, quellen, fußnoten, anmerkungen, belege, externe links,
    notes et références, références, liens externes, voir aussi, lien externe, articles connexes, bibliographie, annexes,
    referencias, enlaces externos, véase también, bibliografía, notas, notas y referencias, note, collegamenti esterni,
    altri progetti, voci correlate, bibliografia, referências, ligações externas, ver também, externe link, bronnen,
    zie ook, referenties, przypisy, linki zewnętrzne, zobacz też, примечания, ссылки, литература, см. также, источники, referenser,
    externa länkar, se även, källor, noter, 脚注, 外部リンク, 関連項目, 参考文献, 出典, 参考文献, 外部链接, 參考文獻, 外部連結, 外部鏈接,
    参见, 參見, 参考资料, 參考資料, 注释, 註釋, 相关条目, примітки, посилання, література, див. також, джерела, reference, externí odkazy,
    související články, literatura, poznámky, 각주, 외부 링크, 같이 보기, 참고 문헌, kaynakça, dış bağlantılar, ayrıca bakınız, lähteet,
    aiheesta muualla, katso myös, viitteet, jegyzetek, források, további információk, lásd még, referanser, eksterne lenker,
    eksterne henvisninger, se også, kilder, referencer, referințe, legături externe, vezi și, referències, enllaços externs,
    vegeu també, tham khảo, liên kết ngoài, xem thêm, referensi, pranala luar, lihat pula, مراجع, وصلات خارجية, منابع,
    پیوند به بیرون, הערות שוליים, קישורים חיצוניים, παραπομπές, εξωτερικοί σύνδεσμοι""")
