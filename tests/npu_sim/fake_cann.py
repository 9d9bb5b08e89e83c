"""Builds fake CANN runtime libraries, so that the real torch_npu wheel imports on a machine without an NPU.

    python tests/npu_sim/fake_cann.py OUT_DIR

The symbols are those that the installed torch_npu links or looks up by name. Device memory is host memory, streams are
tokens, events know when they were recorded, other runtime calls answer 0 (success). A kernel launch through the runtime
fails: only what `device.py` simulates can give a result. The environment's SOC chooses the device: A2 (Ascend 910B, the
default), 910A.
"""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

LIBRARIES = ("ascendcl", "acl_op_compiler", "hccl", "ge_runner", "graph", "acl_tdt_channel", "opapi", "cust_opapi")
NAME = re.compile(r"^(acl(rt|op|mdl|tdt|prof|dump|sys|[A-Z])|rt[A-Z]|Hccl|Mspr|aml)[A-Za-z0-9_]*$")
ALLOCATE = "{return posix_memalign(p,512,n?n:1)?1:0;}"
TOKEN = "{*s=malloc(8);return 0;}"
COPY = "{memcpy(d,s,n);return 0;}"
WAIT = "{++waits;return 0;}"
# What is not in CANN: whether the device is a 910A, how often the runtime was asked to wait, a clock.
OWN = """static bool is_910a(){const char*s=getenv("SOC");return s&&!strcmp(s,"910A");}
static long waits=0;
long fakeCannWaits(){return waits;}
static long microseconds(){timespec t;clock_gettime(CLOCK_MONOTONIC,&t);return t.tv_sec*1000000+t.tv_nsec/1000;}"""
IMPLEMENTED = {
    "aclrtGetSocName": 'const char* aclrtGetSocName(){return is_910a()?"Ascend910A":"Ascend910B3";}',
    # The only attribute that torch_npu asks for: whether arithmetic has infinities, or saturates and sets a flag.
    "aclGetCannAttribute": "int aclGetCannAttribute(int,int*value){*value=!is_910a();return 0;}",
    # Of no version: what is left in the memory for the answer would be taken for one.
    "aclsysGetCANNVersion": "int aclsysGetCANNVersion(int,char*version){*version=0;return 0;}",
    "aclrtSynchronizeDevice": f"int aclrtSynchronizeDevice(){WAIT}",
    "aclrtSynchronizeDeviceWithTimeout": f"int aclrtSynchronizeDeviceWithTimeout(int){WAIT}",
    "aclrtSynchronizeStream": f"int aclrtSynchronizeStream(void*){WAIT}",
    "aclrtSynchronizeStreamWithTimeout": f"int aclrtSynchronizeStreamWithTimeout(void*,int){WAIT}",
    "aclrtSynchronizeEvent": f"int aclrtSynchronizeEvent(void*){WAIT}",
    "aclrtSynchronizeEventWithTimeout": f"int aclrtSynchronizeEventWithTimeout(void*,int){WAIT}",
    "aclGetRecentErrMsg": 'const char* aclGetRecentErrMsg(){return "fake CANN runtime";}',
    "aclrtGetDeviceCount": "int aclrtGetDeviceCount(unsigned*c){*c=1;return 0;}",
    "aclrtGetDevice": "int aclrtGetDevice(int*d){*d=0;return 0;}",
    "aclrtMalloc": f"int aclrtMalloc(void**p,size_t n,int){ALLOCATE}",
    "aclrtMallocAlign32": f"int aclrtMallocAlign32(void**p,size_t n,int){ALLOCATE}",
    "aclrtMallocHost": f"int aclrtMallocHost(void**p,size_t n){ALLOCATE}",
    "aclrtFree": "int aclrtFree(void*p){free(p);return 0;}",
    "aclrtFreeHost": "int aclrtFreeHost(void*p){free(p);return 0;}",
    "aclrtMemcpy": f"int aclrtMemcpy(void*d,size_t,const void*s,size_t n,int){COPY}",
    "aclrtMemcpyAsync": f"int aclrtMemcpyAsync(void*d,size_t,const void*s,size_t n,int,void*){COPY}",
    "aclrtMemcpyAsyncWithCondition": (
        f"int aclrtMemcpyAsyncWithCondition(void*d,size_t,const void*s,size_t n,int,void*){COPY}"
    ),
    "aclrtMemset": "int aclrtMemset(void*d,size_t,int v,size_t n){memset(d,v,n);return 0;}",
    "aclrtMemsetAsync": "int aclrtMemsetAsync(void*d,size_t,int v,size_t n,void*){memset(d,v,n);return 0;}",
    "aclrtGetMemInfo": "int aclrtGetMemInfo(int,size_t*f,size_t*t){*f=*t=8ul<<30;return 0;}",
    "aclrtCreateStream": f"int aclrtCreateStream(void**s){TOKEN}",
    "aclrtCreateStreamWithConfig": f"int aclrtCreateStreamWithConfig(void**s,unsigned,unsigned){TOKEN}",
    "aclrtCreateEventExWithFlag": f"int aclrtCreateEventExWithFlag(void**s,unsigned){TOKEN}",
    "aclrtCreateEventWithFlag": f"int aclrtCreateEventWithFlag(void**s,unsigned){TOKEN}",
    "aclrtRecordEvent": "int aclrtRecordEvent(void*e,void*){*(long*)e=microseconds();return 0;}",
    "aclrtEventElapsedTime": (
        "int aclrtEventElapsedTime(float*ms,void*a,void*b){*ms=(*(long*)b-*(long*)a)/1e3f;return 0;}"
    ),
    "aclrtGetCurrentContext": "int aclrtGetCurrentContext(void**s){static int c;*s=&c;return 0;}",
    "aclGetCompileoptSize": "size_t aclGetCompileoptSize(int){return 16;}",
    "aclGetCompileopt": 'int aclGetCompileopt(int,char*b,size_t n){strncpy(b,"disable",n);return 0;}',
    "aclopCompileAndExecute": (
        'int aclopCompileAndExecute(const char*op,...){fprintf(stderr,"fake CANN: no kernel %s\\n",op);return 1;}'
    ),
}


def symbols(library: Path) -> set[str]:
    """Names of the runtime functions that a library links or looks up by name."""
    linked = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True)
    looked_up = subprocess.run(["strings", "-a", library], capture_output=True, text=True, check=True)
    names = [line.split()[-1].split("@")[0] for line in linked.stdout.splitlines()]
    names += [line for line in looked_up.stdout.splitlines() if not line.startswith("aclnn")]
    return {name for name in names if NAME.match(name)}


def build(package: Path, out: Path) -> int:
    """Writes the libraries for the torch_npu in `package`; returns the number of symbols."""
    out.mkdir(parents=True, exist_ok=True)
    libraries = [*sorted(package.glob("lib/*.so")), *sorted(package.glob("_C*.so"))]
    names = set().union(*map(symbols, libraries)) | IMPLEMENTED.keys()
    lines = ["#include <cstdio>", "#include <cstdlib>", "#include <cstring>", "#include <ctime>", 'extern "C"{', OWN]
    lines += [IMPLEMENTED.get(name, f"long {name}(){{return 0;}}") for name in sorted(names)]
    source = out / "fake_cann.cpp"
    source.write_text("\n".join([*lines, "}\n"]))
    first = out / f"lib{LIBRARIES[0]}.so"
    subprocess.run(["c++", "-shared", "-fPIC", "-O1", "-w", source, "-o", first], check=True)
    for name in LIBRARIES[1:]:
        link = out / f"lib{name}.so"
        link.unlink(missing_ok=True)
        link.symlink_to(first.name)
    return len(names)


if __name__ == "__main__":
    spec = importlib.util.find_spec("torch_npu")
    if spec is None or spec.origin is None:
        sys.exit("torch_npu is not installed: make test-npu sets everything up")
    print(f"fake CANN runtime: {build(Path(spec.origin).parent, Path(sys.argv[1]))} symbols")
