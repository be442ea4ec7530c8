{{- define "serve.name" -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name) | trunc 63 | trimSuffix "-" -}}
{{- end }}

{{- define "serve.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "serve.labels" -}}
{{ include "serve.selector" . }}
app.kubernetes.io/version: {{ .Values.image.tag | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* Until KILL: the drain, the requests, the lifespan, what options add, the five seconds that serve itself adds, and five to spare. */}}
{{- define "serve.gracePeriod" -}}
{{- add .Values.drain.delay .Values.gracefulTimeout .Values.shutdownTimeout .Values.extraGrace 10 }}
{{- end }}

{{/* Probes of two seconds: for each worker as long as it may take, since on few cores they start one after the other,
     and as long again for the import of a template. */}}
{{- define "serve.startupFailures" -}}
{{- div (add (mul .Values.startupTimeout (add .Values.workers (ternary 0 1 (eq .Values.preload "off")))) 3) 2 }}
{{- end }}

{{/* Probes of ten seconds with a timeout of five: not before blocked workers are noticed (--worker-timeout and a tenth of
     it), have told where (4 s), and are replaced (--startup-timeout). Without --worker-timeout nothing else ends them. */}}
{{- define "serve.livenessFailures" -}}
{{- if .Values.workerTimeout }}
{{- add (div (add (div (mul .Values.workerTimeout 11) 10) .Values.startupTimeout 9) 10) 1 }}
{{- else }}
{{- 3 }}
{{- end }}
{{- end }}

{{/* What the schema cannot say, or not in a sentence. A second --drain-delay would count for the server, and not for the
     grace period. */}}
{{- define "serve.checks" -}}
{{- $ports := list .Values.containerPort }}
{{- if .Values.admin.enabled }}{{ $ports = append $ports .Values.admin.port }}{{ end }}
{{- if .Values.tls.enabled }}{{ $ports = append $ports .Values.tls.port }}{{ end }}
{{- if ne (len $ports) (len (uniq $ports)) }}
{{- fail "containerPort, admin.port and tls.port must differ: each is an address of its own" }}
{{- end }}
{{- range .Values.options }}
{{- if regexMatch "^--(no-)?(preload|workers|canary|canary-share|canary-time|drain-delay|drain-close-after|graceful-timeout|shutdown-timeout|startup-timeout|worker-timeout|forwarded-allow-ips|admin|tls-cert|tls-key)(=|$)" . }}
{{- fail (printf "options: %s has a value of its own, see values.yaml" .) }}
{{- end }}
{{- end }}
{{- if and .Values.networkPolicy.enabled .Values.admin.enabled (not .Values.networkPolicy.metricsFrom) }}
{{- fail "networkPolicy.metricsFrom is empty, which would admit everybody to the admin port" }}
{{- end }}
{{- if and .Values.tls.enabled (not .Values.tls.secret) }}
{{- fail "tls.enabled needs tls.secret: the name of a Secret with tls.crt and tls.key" }}
{{- end }}
{{- end }}
