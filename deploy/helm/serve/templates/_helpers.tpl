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

{{/* Until KILL: the drain, the requests, the lifespan, the five seconds that serve itself adds, and five to spare. */}}
{{- define "serve.gracePeriod" -}}
{{- add .Values.drain.delay .Values.gracefulTimeout .Values.shutdownTimeout 10 }}
{{- end }}
