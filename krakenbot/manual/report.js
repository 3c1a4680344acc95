for(const c of document.querySelectorAll('.chart')){
const d=JSON.parse(c.querySelector('script').textContent),i=c.querySelector('i'),
o=c.querySelector('output');
c.onpointermove=e=>{const b=c.getBoundingClientRect(),x=(e.clientX-b.left)/b.width*1000;
let l=0,h=d.x.length-1;while(l<h){const m=l+h>>1;d.x[m]<x?l=m+1:h=m}
if(l&&x-d.x[l-1]<d.x[l]-x)l--;i.style.left=d.x[l]/10+'%';
o.textContent=d.t[l]+' UTC'+d.s.map(s=>'\n'+s[0]+'  '+s[1][l]).join('');
const r=d.x[l]>500;o.style.left=r?'auto':d.x[l]/10+1+'%';
o.style.right=r?101-d.x[l]/10+'%':'auto';i.style.display=o.style.display='block'};
c.onpointerleave=()=>{i.style.display=o.style.display='none'}}
